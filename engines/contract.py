"""The two interfaces of this folder.

An `Engine` serves sequences: it batches, streams and aborts. A `Runner` does one forward pass and owns the tensors.
The server knows only `Engine`; the engine's loop knows only `Runner`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engines.sequence import GenerationRequest, SequenceEvent, SequenceState
from models.student.manifest import HeadKind

Block = npt.NDArray[np.generic]
"""KV of consecutive tokens of one stage, in the runner's own element type."""

Publish = Callable[[Sequence[SequenceEvent]], None]
"""Receives the events of one step, in order, on the engine's own thread. Must not block and must not raise."""


@dataclass(slots=True, kw_only=True, frozen=True)
class PathStatus:
    """How far a path is loaded: `num_loaded_stages` of `num_stages` (its modules, its exit and the head)."""

    path: str
    num_loaded_stages: int
    num_stages: int
    is_default: bool

    @property
    def is_servable(self) -> bool:
        return self.num_loaded_stages == self.num_stages


@dataclass(slots=True, kw_only=True, frozen=True)
class EngineStatus:
    """A snapshot for probes, admission and metrics. Counters only grow while the engine lives.

    An unhealthy engine has an `error`, a sentence that clients may read, and perhaps an `error_detail`, which is for
    operators only because it may name files. Stage keys are module and exit names, `head` and `cheap_head`;
    `stage_runs` counts the steps in which a stage ran. `busy_s` is the time of all steps, `background_s` the part of it
    that sequences in the background took: of a forward pass, that of their tokens. An engine that `can_score` answers
    takes such sequences. One that `can_pause` sequences gives every tenant its share of the slots; `num_pauses` counts
    how often it did, `num_preemptions` how often a sequence lost its KV to one that runs. `kv_capacity_tokens` is the
    longest sequence that the KV bound allows. `head` chooses tokens where a request does not demand the exact one; like
    `variant` and `kv_precision`, what KV is kept in (empty: an engine that is not fenhe's own keeps it), it never
    changes.
    """

    student: str
    is_healthy: bool
    error: str | None
    paths: tuple[PathStatus, ...]
    num_running: int
    num_waiting: int
    kv_used_bytes: int
    kv_capacity_bytes: int
    stage_runs: Mapping[str, int] = field(default_factory=dict)
    stage_rows: Mapping[str, int] = field(default_factory=dict)
    prefix_query_tokens: Mapping[str, int] = field(default_factory=dict)
    prefix_hit_tokens: Mapping[str, int] = field(default_factory=dict)
    prefix_cache_bytes: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_accepted: int = 0
    num_preemptions: int = 0
    num_pauses: int = 0
    num_steps: int = 0
    num_failed_steps: int = 0
    error_detail: str | None = None
    variant: str = ""
    kv_precision: str = ""
    head: HeadKind = "exact"
    kv_capacity_tokens: int | None = None
    busy_s: float = 0.0
    background_s: float = 0.0
    num_background_tokens: int = 0
    can_score: bool = False
    can_pause: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether new work can be answered: healthy, and the default path is loaded."""
        return self.is_healthy and all(path.is_servable for path in self.paths if path.is_default)


class Engine(Protocol):
    """Serves sequences. All methods may be called from any thread; events come through `publish`.

    Every sequence that `submit` accepted ends in exactly one event whose `finish` is set.
    """

    def start(self, publish: Publish) -> None:
        """Begin loading and serving in the background; return at once."""
        ...

    def submit(self, request: GenerationRequest) -> None:
        """Queue a sequence.

        Raises: QueueFull, EngineUnhealthy, ContextTooLong, UnknownModel (no such path).
        """
        ...

    def abort(self, sequence_id: str) -> None:
        """End a sequence within one step; unknown or finished ids are ignored."""
        ...

    def status(self) -> EngineStatus: ...

    def sequences(self, limit_s: float) -> list[SequenceState]:
        """The state of every sequence that has not ended, running ones first. Blocks.

        Raises: EngineUnhealthy when the engine's thread did not answer within `limit_s`.
        """
        ...

    def audit(self, limit_s: float) -> list[str]:
        """What is inconsistent in the engine's bookkeeping (slots, KV, cached prefixes), as sentences; empty when
        nothing is. Blocks. An engine thread that does not answer within `limit_s` is reported the same way."""
        ...

    def stop(self, grace_s: float) -> None:
        """Refuse new work, let sequences finish for up to `grace_s` seconds, abort the rest, join the thread."""
        ...


@dataclass(slots=True, kw_only=True, frozen=True)
class PrefillChunk:
    """Consecutive tokens of one sequence. `start` is the position of the first; KV before it exists already.

    `wants_logits` asks for the last token's logits by this `head`; with `keeps_states`, `Runner.position_logits` gives
    those of any of its positions until the next step.
    """

    slot: int
    path: str
    start: int
    token_ids: tuple[int, ...]
    wants_logits: bool
    keeps_states: bool = False
    head: HeadKind = "exact"

    @property
    def wanted_places(self) -> range:
        """Which of its tokens' final states are read."""
        num_tokens = len(self.token_ids)
        first = 0 if self.keeps_states else num_tokens - 1 if self.wants_logits else num_tokens
        return range(first, num_tokens)


@dataclass(slots=True, kw_only=True, frozen=True)
class DecodeRow:
    """One token of one sequence at `position`. Row i of a step uses slot i.

    A row without a path is padding: its slot is free or still prefilling, and `position` is that
    slot's first position without KV, so what the row writes there is overwritten before it is read.
    """

    path: str | None
    position: int
    token_id: int
    head: HeadKind = "exact"


@dataclass(slots=True, kw_only=True, frozen=True)
class StepInput:
    """One forward pass. `decode` is sorted deepest path first: every module's rows are a prefix."""

    decode: tuple[DecodeRow, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()


class Runner(Protocol):
    """Owns weights and KV of one student. Only the engine thread uses it, except for `load`.

    A `forward` that raises leaves the KV of tokens before this step intact.
    """

    def load(self, stage: str) -> None:
        """Bring one stage (module or exit) or the `head` into memory, the cheap head together with the exact one.

        Called once each, from the loading thread.
        """
        ...

    def forward(self, step: StepInput) -> npt.NDArray[np.float32]:
        """Run one step. The result is valid until the next step; what it has for padding means nothing.

        Shapes: returns [rows, vocab]: a row per decode row, padding included, then one per chunk that wants logits.
        """
        ...

    def exact_logits(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """The exact head's logits of some rows of the last step's result, in ascending order.

        Valid until the next call or step.

        Shapes: returns [len(rows), vocab].
        """
        ...

    def position_logits(self, slot: int, first: int, end: int) -> npt.NDArray[np.float32]:
        """Exact logits after the tokens at positions `first` to `end` (exclusive) of a chunk whose states the last step
        kept.

        Shapes: returns [end - first, vocab].
        """
        ...

    def move_slot(self, source: int, target: int, path: str, num_tokens: int) -> None:
        """Copy the KV of a sequence between slots."""
        ...

    def read_block(self, stage: str, slot: int, start: int, num_tokens: int) -> Block:
        """Copy KV out. Shapes: [layers, parts, kv_heads, num_tokens, width]; parts and width are the runner's own."""
        ...

    def write_block(self, stage: str, slot: int, start: int, block: Block) -> None:
        """Copy KV in. Shapes: as `read_block` returns it."""
        ...

    def release_slot(self, slot: int, num_tokens: int) -> None:
        """The slot's first `num_tokens` tokens are no longer needed: their memory may be returned to the system."""
        ...

    @property
    def skips_padding(self) -> bool:
        """Whether decode rows that are padding cost nothing."""
        ...

    def kv_bytes_per_token(self, stage: str) -> int:
        """What one token's KV takes in this stage; 0 for a stage without layers. Known before `load`."""
        ...
