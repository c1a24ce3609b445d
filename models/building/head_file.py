"""The cheap head of a model in one small file: how to preview all logits from a few dimensions, and which tokens are
frequent.

With x the normed state and W the exact head, the preview is `(x @ project.T) @ (W @ expand.T).T + bias`: only
`project`, `expand` [rank, hidden] and `bias` [vocab] are stored, so that the file is small for any vocabulary.
A safetensors file in fp32; its metadata key `fenhe_head` holds the `HeadPlan`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from models.architecture import Architecture
from models.building.planned_file import PlanKind, read_planned
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.file_writing import write_whole
from models.graphs.cheap_head import HEAD_BIAS, HEAD_PREVIEW, Candidates
from models.graphs.decoder_graph import head_weight
from models.graphs.rotate import HEAD_PROJECT
from models.sources.derived_source import DerivedSource
from models.sources.safetensors_file import SafetensorsFile
from models.sources.source import ModelSource
from models.student.manifest import CheapHead, Record

FORMAT_VERSION = 2
METADATA_KEY = "fenhe_head"
REMEDY = "make it again with `fenhe head`"
TENSORS = ("project", "expand", "bias")
RANK_MULTIPLE = 4
"""The native product reads four values at a time."""

Array = npt.NDArray[np.float32]
Positive = Annotated[int, Meta(ge=1)]


class HeadPlan(Record, frozen=True, kw_only=True):
    """What a head file holds besides its matrices.

    Candidates are the tokens whose preview is at most `reach` nats below the best, `num_candidates` at most; the tokens
    of `frequent` are always exact. `mean_candidates` is how many there were on average where it was fitted, None in a
    file that does not say. `source_sha256` is of the model it was fitted to.
    """

    format_version: int = FORMAT_VERSION
    source_sha256: str
    num_candidates: Positive
    reach: Annotated[float, Meta(gt=0.0)]
    frequent: tuple[Annotated[int, Meta(ge=0)], ...]
    mean_candidates: Annotated[float, Meta(ge=0.0)] | None = None
    training: dict[str, Any] = msgspec.field(default_factory=dict)


def write_head_file(file: Path, plan: HeadPlan, tensors: Mapping[str, Array]) -> None:
    """Write a head file; the same plan and tensors give the same bytes.

    Shapes: project, expand [rank, hidden], bias [vocab].
    """
    from safetensors.numpy import save

    text = msgspec.json.encode(plan, order="deterministic").decode()
    stored = {name: np.ascontiguousarray(tensors[name], np.float32) for name in TENSORS}
    write_whole(file, save(stored, metadata={METADATA_KEY: text}))


HEAD_FILE = PlanKind(
    key=METADATA_KEY,
    plan=HeadPlan,
    format_version=FORMAT_VERSION,
    name="a head file",
    missing="give the file that `fenhe head` wrote",
    remedy=REMEDY,
)


def read_head_file(file: Path) -> "HeadFile":
    """Open a head file.

    Raises: ConfigError (no head file), WeightsError (damaged or cut short).
    """
    stored, plan = read_planned(file, HEAD_FILE)
    return HeadFile(file=file, plan=plan, stored=stored)


@dataclass(kw_only=True, frozen=True)
class HeadFile:
    """A head file, opened."""

    file: Path
    plan: HeadPlan
    stored: SafetensorsFile

    @cached_property
    def sha256(self) -> str:
        return sha256_of([self.file])

    @property
    def rank(self) -> int:
        return self.stored.tensors["project"].shape[0]

    @property
    def candidates(self) -> Candidates:
        plan = self.plan
        return Candidates(frequent=plan.frequent, num_candidates=plan.num_candidates, reach=plan.reach)

    def record(self) -> CheapHead:
        """What the manifest says of this head."""
        return CheapHead(
            rank=self.rank,
            num_frequent=len(self.plan.frequent),
            num_candidates=self.plan.num_candidates,
            mean_candidates=self.plan.mean_candidates,
            sha256=self.sha256,
        )

    def check(self, model: ModelSource) -> None:
        """Check the file against the model that a student is built from.

        Raises: ConfigError (fitted to another model), WeightsError (tensors or token ids that do not fit it).
        """
        if self.plan.source_sha256 != model.sha256():
            raise ConfigError(
                f"{self.file}: the head was fitted to a model with SHA-256 {self.plan.source_sha256[:12]}..., and "
                f"{model.name} ({model.files[0]}) has {model.sha256()[:12]}...; build from that model, or fit a head "
                "to this one with `fenhe head`"
            )
        if problems := [*self._tensor_problems(model.architecture), *self._token_problems(model.architecture)]:
            raise WeightsError(f"{self.file} does not fit {model.name}: {'; '.join(problems)}; {REMEDY}")

    def _tensor_problems(self, architecture: Architecture) -> list[str]:
        hidden, tensors = architecture.hidden_size, self.stored.tensors
        if sorted(tensors) != sorted(TENSORS):
            return [f"it has the tensors {', '.join(sorted(tensors)) or 'none'}, not {', '.join(TENSORS)}"]
        if len(tensors["project"].shape) != 2:
            return [f"project is {list(tensors['project'].shape)}, not [rank, {hidden}]"]
        expected = {
            "project": (self.rank, hidden),
            "expand": (self.rank, hidden),
            "bias": (architecture.vocab_size,),
        }
        problems = [
            f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
            for name, shape in expected.items()
            if tensors[name].shape != shape
        ]
        if not 0 < self.rank <= hidden:
            problems.append(f"its rank {self.rank} must be from {RANK_MULTIPLE} to the hidden size, {hidden}")
        elif self.rank % RANK_MULTIPLE:
            problems.append(f"its rank {self.rank} must be a multiple of {RANK_MULTIPLE}")
        if not problems:
            problems = [f"{name} is not finite" for name in TENSORS if not np.isfinite(self.stored.read(name)).all()]
        return problems

    def _token_problems(self, architecture: Architecture) -> list[str]:
        frequent, vocab = self.plan.frequent, architecture.vocab_size
        problems = []
        if not frequent or len(set(frequent)) < len(frequent) or max(frequent) >= vocab:
            problems.append(f"its frequent tokens must be different ids from 0 to {vocab - 1}, at least one")
        if len(frequent) + self.plan.num_candidates > vocab:
            problems.append(
                f"{len(frequent)} frequent tokens and {self.plan.num_candidates} candidates are more than the "
                f"vocabulary, {vocab}"
            )
        return problems

    def source_for(self, base: ModelSource) -> "HeadSource":
        """The model with the cheap head's matrices beside its own."""
        return HeadSource(self, base)


class HeadSource(DerivedSource):
    """A `ModelSource` that adds `HEAD_PROJECT`, `HEAD_PREVIEW` and `HEAD_BIAS` to those of the base model."""

    def __init__(self, head: HeadFile, base: ModelSource) -> None:
        super().__init__(base, base.architecture, head.file)
        self._head = head

    def tensor_names(self) -> frozenset[str]:
        return self._base.tensor_names() | {HEAD_PROJECT, HEAD_PREVIEW, HEAD_BIAS}

    def shape(self, name: str) -> tuple[int, ...]:
        rank, vocab, hidden = self._head.rank, self.architecture.vocab_size, self.architecture.hidden_size
        own = {HEAD_PROJECT: (rank, hidden), HEAD_PREVIEW: (vocab, rank), HEAD_BIAS: (vocab,)}
        return own[name] if name in own else self._base.shape(name)

    def read(self, name: str) -> Array:
        """Shapes: `HEAD_PROJECT` [rank, hidden], `HEAD_PREVIEW` [vocab, rank], `HEAD_BIAS` [vocab]; others as in the
        base model."""
        stored = self._head.stored
        if name == HEAD_PROJECT:
            return stored.read("project")
        if name == HEAD_PREVIEW:
            return np.asarray(self._exact() @ stored.read("expand").T, np.float32)
        if name == HEAD_BIAS:
            return stored.read("bias")
        return self._base.read(name)

    def _exact(self) -> Array:
        return self._base.read(head_weight(self._base))
