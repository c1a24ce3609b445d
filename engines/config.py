"""Settings of the module engine. Frozen; every bound has a finite default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from models.bounds import Positive, out_of_bounds

MIB = 1 << 20
CountOrZero = Annotated[int, Meta(ge=0)]
StepTokens = Annotated[int, Meta(ge=4)]
"""Prompts are never cut into single tokens, so a step must have room for more."""


@dataclass(slots=True, kw_only=True, frozen=True)
class EngineConfig:
    """How much one engine may hold and how it schedules.

    `max_context_tokens` None takes the student's own. `step_tokens` bounds the prompt tokens of one step while nothing
    else runs; `busy_step_tokens` while streams are running, and so bounds the gap a long prompt causes in them.
    `precision` is a variant of the student, or `auto`: the fastest here that fits `weights_bytes`, one for all row
    counts, so that an answer never depends on what else runs; or `adaptive`: the fastest for each row count, which
    gives that up. fenhe's own operators are compiled into `native_folder` once; None does without them.
    """

    max_running: Positive = 32
    max_waiting: CountOrZero = 256
    max_context_tokens: Annotated[int, Meta(ge=2)] | None = None
    kv_bytes: Positive = 2048 * MIB
    prefix_cache_bytes: CountOrZero = 512 * MIB
    weights_bytes: Positive = 4096 * MIB
    step_tokens: StepTokens = 512
    busy_step_tokens: StepTokens = 128
    precision: str = "auto"
    num_threads: Positive | None = None
    native_folder: Path | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        return out_of_bounds(self)
