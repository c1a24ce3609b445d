"""Settings of the module engine. Frozen; every bound has a finite default."""

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(slots=True, kw_only=True, frozen=True)
class EngineConfig:
    """How much one engine may hold and how it schedules.

    `max_context_tokens` None takes the student's own. `step_tokens` bounds the prompt tokens of one step while nothing
    else runs; `busy_step_tokens` while streams are running, and so bounds the gap a long prompt causes in them.
    `precision` is a variant of the student, or `auto`: the fastest here that fits `weights_bytes`, one for all row
    counts, so that an answer never depends on what else runs; or `adaptive`: the fastest for each row count, which
    gives that up. fenhe's own operators are compiled into `native_folder` once; None does without them.
    """

    max_running: int = 32
    max_waiting: int = 256
    max_context_tokens: int | None = None
    kv_bytes: int = 2048 * MIB
    prefix_cache_bytes: int = 512 * MIB
    weights_bytes: int = 4096 * MIB
    step_tokens: int = 512
    busy_step_tokens: int = 128
    precision: str = "auto"
    num_threads: int | None = None
    native_folder: Path | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        positive = ("max_running", "kv_bytes", "weights_bytes")
        found = [
            f"{name} must be at least 1, not {getattr(self, name)}" for name in positive if getattr(self, name) < 1
        ]
        found += [
            f"{name} must not be negative, not {getattr(self, name)}"
            for name in ("max_waiting", "prefix_cache_bytes")
            if getattr(self, name) < 0
        ]
        # Prompts are never cut into single tokens, so a step must have room for more.
        found += [
            f"{name} must be at least 4, not {getattr(self, name)}"
            for name in ("step_tokens", "busy_step_tokens")
            if getattr(self, name) < 4
        ]
        if self.max_context_tokens is not None and self.max_context_tokens < 2:
            found.append(f"max_context_tokens must be at least 2, not {self.max_context_tokens}")
        if self.num_threads is not None and self.num_threads < 1:
            found.append(f"num_threads must be at least 1, not {self.num_threads}")
        return found
