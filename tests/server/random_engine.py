"""A real engine on a runner that knows nothing: what it says is random, and legal wherever there is a grammar."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from engines.config import EngineConfig
from engines.contract import Block, StepInput
from engines.loop.module_engine import ModuleEngine
from models.student.folder import Student
from models.student.manifest import HeadKind, Manifest
from models.token_bytes import byte_alphabet
from models.tokenizer import Tokenizer, TokenizerSettings
from server.students.open_student import Opened
from tests.server.conftest import TEMPLATE, make_manifest, make_tokenizer

CONTEXT_TOKENS = 4096


NUM_EXACT = 64
"""Tokens below this one are exact in what the cheap head says."""


class RandomRunner:
    """Logits that depend on position and token alone. There is no KV. The cheap head errs by as much again."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._exact = np.zeros((0, vocab_size), np.float32)
        self._errors = np.random.default_rng(1).random(vocab_size, np.float32) * 4 - 2
        self._errors[:NUM_EXACT] = 0

    def load(self, stage: str) -> None:
        pass

    def forward(self, step: StepInput) -> npt.NDArray[np.float32]:
        places = [(row.position, row.token_id) for row in step.decode]
        places += [
            (chunk.start + len(chunk.token_ids) - 1, chunk.token_ids[-1])
            for chunk in step.prefill
            if chunk.wants_logits
        ]
        rows = [np.random.default_rng(place).random(self._vocab_size, np.float32) * 4 for place in places]
        self._exact = np.stack(rows) if rows else np.zeros((0, self._vocab_size), np.float32)
        heads = [row.head for row in step.decode] + [chunk.head for chunk in step.prefill if chunk.wants_logits]
        is_cheap = np.array([head == "cheap" for head in heads], np.bool_)
        return self._exact + np.where(is_cheap[:, None], self._errors, np.float32(0))

    def exact_logits(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        return self._exact[list(rows)]

    def position_logits(self, slot: int, first: int, end: int) -> npt.NDArray[np.float32]:
        rows = [np.random.default_rng(place).random(self._vocab_size, np.float32) * 4 for place in range(first, end)]
        return np.stack(rows)

    def move_slot(self, source: int, target: int, path: str, num_tokens: int) -> None:
        pass

    def read_block(self, stage: str, slot: int, start: int, num_tokens: int) -> Block:
        return np.zeros((1, 2, 1, num_tokens, 1), np.float32)

    def write_block(self, stage: str, slot: int, start: int, block: Block) -> None:
        pass

    def release_slot(self, slot: int, num_tokens: int) -> None:
        pass

    @property
    def skips_padding(self) -> bool:
        return True

    def kv_bytes_per_token(self, stage: str) -> int:
        return 8


def long_student(template: str | None = None) -> Student:
    """A student without weights that has room for the text of tools."""
    manifest = _with_long_context(make_manifest("random"))
    tokenizer = make_tokenizer() if template is None else make_tokenizer(template)
    return Student(folder=Path("nowhere"), manifest=manifest, tokenizer=tokenizer)


def backward_student() -> Student:
    """One with as many tokens, and the same, under other ids."""
    alphabet = byte_alphabet()
    backend = Backend(models.BPE(vocab={alphabet[byte]: 255 - byte for byte in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    tokenizer = Tokenizer(backend, TokenizerSettings(eos_token="<|im_end|>", eos_token_ids=(257,)), TEMPLATE)
    return Student(folder=Path("nowhere"), manifest=long_student().manifest, tokenizer=tokenizer)


def open_random(template: str | None = None, *, student: Student | None = None, head: HeadKind = "exact") -> Opened:
    """A student that answers at random, behind an engine that has yet to be started."""
    student = student or long_student(template)
    engine = ModuleEngine(
        student,
        RandomRunner(student.manifest.architecture.vocab_size),
        EngineConfig(max_running=8),
        capacity_tokens=CONTEXT_TOKENS,
        variant="random",
        head=head,
    )
    return Opened(name="random", student=student, engine=engine)


def _with_long_context(manifest: Manifest) -> Manifest:
    architecture = msgspec.structs.replace(manifest.architecture, max_context_tokens=CONTEXT_TOKENS)
    return msgspec.structs.replace(manifest, architecture=architecture)
