"""Settings of the module engine. Frozen; every bound has a finite default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from models.bounds import Positive, out_of_bounds
from models.errors import Problem

MIB = 1 << 20
CountOrZero = Annotated[int, Meta(ge=0)]
ContextTokens = Annotated[int, Meta(ge=2)]
StepTokens = Annotated[int, Meta(ge=4)]
"""Prompts are never cut into single tokens, so a step must have room for more."""


@dataclass(slots=True, kw_only=True, frozen=True)
class EngineConfig:
    """How much one engine may hold and how it schedules.

    `busy_step_tokens` and `busy_step_ms` bound the gap that a long prompt causes in running streams. With `precision`
    auto, one that fits `weights_bytes` is chosen for all row counts, so that an answer never depends on what else runs;
    adaptive gives that up. With `kv_precision` int8, auto and adaptive choose among the precisions that have it.
    `native_folder` None does without fenhe's own operators.
    """

    max_running: Annotated[Positive, Meta(description="sequences that run at once")] = 32
    max_waiting: Annotated[
        CountOrZero, Meta(description="sequences that wait behind them; more are refused with 429")
    ] = 256
    max_context_tokens: Annotated[
        ContextTokens | None,
        Meta(description="tokens of prompt and answer together", extra={"unset": "the student's own"}),
    ] = None
    kv_bytes: Annotated[Positive, Meta(description="memory for the KV of running sequences")] = 2048 * MIB
    prefix_cache_bytes: Annotated[
        CountOrZero, Meta(description="memory for the KV of shared prompt prefixes; 0 keeps none")
    ] = 512 * MIB
    weights_bytes: Annotated[Positive, Meta(description="memory for weights that precision auto may load")] = 4096 * MIB
    step_tokens: Annotated[StepTokens, Meta(description="prompt tokens of one step while nothing else runs")] = 512
    busy_step_tokens: Annotated[
        StepTokens, Meta(description="the same beside running streams, at most; see busy_step_ms")
    ] = 128
    busy_step_ms: Annotated[
        CountOrZero,
        Meta(
            description="milliseconds that running streams wait for a step with prompts, or with many streams of "
            "another tenant: less for smoother streams, more for faster prompts, which have four fifths of a step at "
            "least (and ten times as long while no stream runs); 0: any time"
        ),
    ] = 50
    precision: Annotated[
        str, Meta(description="a precision of the student; auto: the fastest here; adaptive: the fastest per row count")
    ] = "auto"
    kv_precision: Annotated[
        Literal["auto", "int8"],
        Meta(
            description="what KV is kept in; auto: fp16 with fenhe's own operators, else fp32; int8: about half of the "
            "memory of fp16, for precisions w8a8-native and gguf-native alone"
        ),
    ] = "auto"
    head: Annotated[
        Literal["auto", "exact", "cheap"],
        Meta(description="the head of requests that do not need the exact one; auto: the cheap one where it is faster"),
    ] = "auto"
    num_threads: Annotated[
        Positive | None,
        Meta(description="threads that compute", extra={"unset": "the cores it may use, or a container's CPU limit"}),
    ] = None
    native_folder: Annotated[
        Path | None,
        Meta(
            description="where fenhe's own operators are compiled to", extra={"unset": "in the cache, see FENHE_CACHE"}
        ),
    ] = None

    def problems(self) -> list[Problem]:
        """Everything wrong with the values; empty when they are sound."""
        return out_of_bounds(self)
