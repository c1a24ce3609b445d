"""What the engine asks of the process that computes: requests in, what its steps gave out. Imports nothing of vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from engines.sequence import GenerationRequest
from models.student.manifest import HeadKind

Key = TypeVar("Key")


class ProcessEnded(Exception):
    """The process that computes is gone, or cannot be started."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Scores:
    """Log-probabilities at one position: of the token that came, and of the likeliest, these in falling order."""

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class RowOutput:
    """What a step gave one sequence. `problem` is set when the process ended it for a reason that is not its text.

    `num_cached_tokens` and `scheduled_s` come with its first token; `prompt_scores` too, from the second token on.
    """

    sequence_id: str
    token_ids: tuple[int, ...] = ()
    scores: tuple[Scores, ...] = ()
    prompt_scores: tuple[Scores, ...] = ()
    is_finished: bool = False
    problem: str | None = None
    num_cached_tokens: int | None = None
    scheduled_s: float | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class Load:
    """What runs and waits in the process, and the share of its KV that is used."""

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    num_preemptions: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class StepOutput:
    rows: Sequence[RowOutput] = ()
    load: Load | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class StepCounts:
    """What the model ran since it was loaded: steps and tokens by number of layers, rows of logits by head."""

    num_steps: int = 0
    steps_by_layers: Mapping[int, int] = field(default_factory=dict)
    tokens_by_layers: Mapping[int, int] = field(default_factory=dict)
    head_runs: Mapping[HeadKind, int] = field(default_factory=dict)
    head_rows: Mapping[HeadKind, int] = field(default_factory=dict)

    def __add__(self, other: "StepCounts") -> "StepCounts":
        return StepCounts(
            num_steps=self.num_steps + other.num_steps,
            steps_by_layers=_sum(self.steps_by_layers, other.steps_by_layers),
            tokens_by_layers=_sum(self.tokens_by_layers, other.tokens_by_layers),
            head_runs=_sum(self.head_runs, other.head_runs),
            head_rows=_sum(self.head_rows, other.head_rows),
        )


def _sum(one: Mapping[Key, int], other: Mapping[Key, int]) -> dict[Key, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


class ServingProcess(Protocol):
    """One life of the process that computes. The engine's thread alone uses it, except for `wake`.

    All but `wake` and `end` raise ProcessEnded once it is gone.
    """

    def add(self, request: GenerationRequest, head: HeadKind) -> None:
        """Queue a sequence. Raises: InvalidParameter for one that it refuses."""
        ...

    def abort(self, sequence_ids: Sequence[str]) -> None:
        """End sequences without another word of them."""
        ...

    def poll(self, wait_s: float) -> StepOutput | None:
        """The next step's output; None when it took longer than that, or somebody woke the thread."""
        ...

    def wake(self) -> None:
        """Let `poll` return at once."""
        ...

    def counts(self) -> StepCounts:
        """What is known of what it ran; asks for newer numbers, without waiting for them."""
        ...

    def kv_capacity_bytes(self) -> int: ...

    def kv_capacity_tokens(self) -> int: ...

    def end(self) -> None:
        """End it at once, whatever it does."""
        ...
