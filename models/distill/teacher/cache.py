"""The teacher's states and predictions for every training token, computed once and kept on disk.

States at module boundaries and after the last layer, its likeliest next tokens with their log-probabilities, and its
entropy. Training then never runs the trunk again. A build that was killed continues where it stopped.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from models.distill.data.examples import Example
from models.distill.network.decoder import Trunk, padded
from models.errors import ConfigError
from models.file_writing import write_whole

FORMAT_VERSION = 1
PLAN_NAME = "cache.json"
DONE_NAME = "done"
HEAD_TOKENS = 512
"""How many positions go through the head at a time: 512 rows of 49,152 logits are 100 MB."""
FLUSH_BATCHES = 32


class CachePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a cache holds; one of another plan is not used. `layers` are the numbers of layers run before each state."""

    format_version: int
    source_sha256: str
    examples_sha256: str
    num_tokens: int
    hidden_size: int
    layers: tuple[int, ...]
    top_k: int

    def key(self) -> str:
        """A name for the cache's folder."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    def bytes_per_token(self) -> int:
        return 2 * self.hidden_size * len(self.layers) + (4 + 2) * self.top_k + 4


@dataclass(slots=True, kw_only=True, frozen=True)
class CachedTeacher:
    """Tensors on disk, mapped. N tokens, H hidden, K likeliest tokens.

    Shapes: `states` by layer [N, H] (bf16), `top_ids` [N, K], `top_logprobs` [N, K] (fp16), `entropy` [N] (nats).
    Example i has the rows `offsets[i]` to `offsets[i + 1]`.
    """

    states: dict[int, Tensor]
    top_ids: Tensor
    top_logprobs: Tensor
    entropy: Tensor
    offsets: tuple[int, ...]


def plan_cache(
    trunk: Trunk, source_sha256: str, examples: Sequence[Example], layers: Sequence[int], top_k: int
) -> CachePlan:
    """The plan for these examples; states after the last layer are always among them."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.asarray((len(example.token_ids), *example.token_ids), np.int64).tobytes())
    return CachePlan(
        format_version=FORMAT_VERSION,
        source_sha256=source_sha256,
        examples_sha256=digest.hexdigest(),
        num_tokens=sum(example.num_tokens for example in examples),
        hidden_size=trunk.architecture.hidden_size,
        layers=tuple(sorted({*layers, trunk.architecture.num_layers})),
        top_k=top_k,
    )


def cached_teacher(
    parent: Path,
    plan: CachePlan,
    trunk: Trunk,
    examples: Sequence[Example],
    *,
    batch_tokens: int = 2048,
    report: Callable[[int], None] = lambda num_tokens: None,
) -> CachedTeacher:
    """Open the cache of this plan below `parent`; build what is missing of it.

    `report` is called with the number of tokens of every batch that is done.
    Raises: ConfigError when the disk has no room.
    """
    folder = parent / plan.key()
    _Build(folder=folder, plan=plan, trunk=trunk, examples=examples, report=report).run(batch_tokens)
    return open_cache(folder, plan, examples)


def open_cache(folder: Path, plan: CachePlan, examples: Sequence[Example]) -> CachedTeacher:
    """Map the files of a finished cache."""
    files = _files(folder, plan, "c")  # torch wants writable memory; nothing is written back
    offsets = np.cumsum([0, *(example.num_tokens for example in examples)])
    return CachedTeacher(
        states={layer: _tensor(files[f"state{layer}"]).view(torch.bfloat16) for layer in plan.layers},
        top_ids=_tensor(files["top_ids"]),
        top_logprobs=_tensor(files["top_logprobs"]),
        entropy=_tensor(files["entropy"]),
        offsets=tuple(int(offset) for offset in offsets),
    )


@dataclass(slots=True, kw_only=True)
class _Build:
    folder: Path
    plan: CachePlan
    trunk: Trunk
    examples: Sequence[Example]
    report: Callable[[int], None]

    def run(self, batch_tokens: int) -> None:
        self._prepare()
        batches = list(self._batches(batch_tokens))
        num_done = self._num_done()
        self.report(sum(self.examples[i].num_tokens for batch in batches[:num_done] for i in batch))
        if num_done == len(batches):
            return
        files = _files(self.folder, self.plan, "r+")
        starts = np.cumsum([0, *(example.num_tokens for example in self.examples)])
        for index in range(num_done, len(batches)):
            self._compute(batches[index], files, starts)
            if (index + 1) % FLUSH_BATCHES == 0 or index + 1 == len(batches):
                self._flush(files, index + 1)

    def _prepare(self) -> None:
        """Make the files and reserve their space: a full disk shows at once, not as a SIGBUS hours later."""
        if (self.folder / PLAN_NAME).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, (kind, shape) in _arrays(self.plan).items():
                _reserve(self.folder / f"{name}.bin", np.dtype(kind).itemsize * math.prod(shape))
        except OSError as error:
            for name in _arrays(self.plan):
                (self.folder / f"{name}.bin").unlink(missing_ok=True)
            needed = self.plan.num_tokens * self.plan.bytes_per_token() / 2**30
            raise ConfigError(
                f"no room for the teacher's cache in {self.folder} ({needed:.1f} GiB): {error}"
            ) from error
        (self.folder / DONE_NAME).write_text("0")
        (self.folder / PLAN_NAME).write_bytes(msgspec.json.encode(self.plan))

    def _num_done(self) -> int:
        return int((self.folder / DONE_NAME).read_text())

    def _flush(self, files: "Files", num_done: int) -> None:
        for file in files.values():
            file.flush()
        write_whole(self.folder / DONE_NAME, str(num_done).encode())

    def _batches(self, batch_tokens: int) -> Iterator[list[int]]:
        """Examples by length, so that padding stays small."""
        batch: list[int] = []
        for index in sorted(range(len(self.examples)), key=lambda i: self.examples[i].num_tokens):
            if batch and self.examples[index].num_tokens * (len(batch) + 1) > batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.no_grad()
    def _compute(self, batch: list[int], files: "Files", starts: "np.typing.NDArray[np.int64]") -> None:
        ids_BT, is_real_BT = padded([self.examples[i].token_ids for i in batch])
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
        hidden_BTH, first = self.trunk.embed(ids_BT.to(self.trunk.device)), 0
        for layer in self.plan.layers:
            hidden_BTH, first = self.trunk.run(hidden_BTH, range(first, layer)), layer
            files[f"state{layer}"][rows] = hidden_BTH[is_real_BT].cpu().to(torch.bfloat16).view(torch.int16).numpy()
        final_NH = self.trunk.norm(hidden_BTH[is_real_BT])
        for part_NH, part in zip(
            torch.split(final_NH, HEAD_TOKENS), np.split(rows, range(HEAD_TOKENS, len(rows), HEAD_TOKENS)), strict=True
        ):
            logprobs_NV = self.trunk.logits(part_NH).float().log_softmax(dim=-1)
            top = logprobs_NV.topk(self.plan.top_k, dim=-1)
            files["top_ids"][part] = top.indices.cpu().numpy()
            files["top_logprobs"][part] = top.values.cpu().numpy()
            files["entropy"][part] = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1).cpu().numpy()
        self.report(len(rows))


Files = dict[str, "np.memmap[tuple[int, ...], np.dtype[np.generic]]"]


def _arrays(plan: CachePlan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every file. bf16 is kept as int16, which numpy knows."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        f"state{layer}": ("int16", (plan.num_tokens, plan.hidden_size)) for layer in plan.layers
    }
    shapes |= {"top_ids": ("int32", (plan.num_tokens, plan.top_k))}
    return shapes | {
        "top_logprobs": ("float16", (plan.num_tokens, plan.top_k)),
        "entropy": ("float32", (plan.num_tokens,)),
    }


def _reserve(file: Path, num_bytes: int) -> None:
    with file.open("wb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, num_bytes)
        else:
            opened.truncate(num_bytes)


def _files(folder: Path, plan: CachePlan, mode: str) -> Files:
    """The cache's arrays, mapped."""
    return {
        name: np.memmap(folder / f"{name}.bin", dtype=kind, mode=mode, shape=shape)  # type: ignore[call-overload]
        for name, (kind, shape) in _arrays(plan).items()
    }


def _tensor(file: "np.memmap[tuple[int, ...], np.dtype[np.generic]]") -> Tensor:
    return torch.from_numpy(np.asarray(file))
