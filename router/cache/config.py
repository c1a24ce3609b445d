"""The settings of the result cache."""

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from models.bounds import Positive, Seconds
from router.tasks import Task

SCHEMES = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")

NEVER_SIMILAR: dict[Task, str] = {
    "math": "two problems that differ by one number have two answers",
    "general": "that is what could not be told, problems of mathematics among it",
}
LEAST_SIMILARITY = 0.9


@dataclass(slots=True, kw_only=True, frozen=True)
class CacheConfig:
    """What is kept, for how long, and where: in this process, or behind `url` in Redis or Valkey.

    `max_bytes` bounds the process's own store alone; Redis has its `maxmemory`. `max_joined` requests at most share one
    generation. `semantic` has, per task, how near a question must be to one that was answered to get its answer; empty,
    the semantic cache is off. It compares `max_questions` at most. `timeout_s` bounds every call to Redis; after
    `breaker_failures` failed ones in a row none is made for `breaker_pause_s`.
    """

    enabled: bool = True
    max_bytes: Positive = 64 * 1024 * 1024
    max_entry_bytes: Positive = 1024 * 1024
    ttl_s: Annotated[int, Meta(ge=1, le=10 * 365 * 86400)] = 3600
    max_joined: Positive = 1024
    semantic: dict[Task, float] = field(default_factory=dict)
    max_questions: Positive = 1000
    url: Annotated[str, Meta(min_length=1)] | None = None
    namespace: Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{1,64}$")] = "fenhe"
    timeout_s: Seconds = 0.05
    max_connections: Positive = 32
    breaker_failures: Positive = 5
    breaker_pause_s: Seconds = 10.0

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences. The URL is not repeated: it may hold a password."""
        found = []
        if self.url is not None and not self.url.startswith(SCHEMES):
            found.append(f"url must begin with one of {', '.join(SCHEMES)}")
        if self.url is None and self.max_entry_bytes > self.max_bytes:
            found.append(f"max_entry_bytes {self.max_entry_bytes} is more than max_bytes {self.max_bytes}")
        for task, threshold in self.semantic.items():
            if task in NEVER_SIMILAR:
                found.append(f"semantic.{task} cannot be: {NEVER_SIMILAR[task]}")
            elif not LEAST_SIMILARITY <= threshold <= 1.0:
                found.append(
                    f"semantic.{task} must be from {LEAST_SIMILARITY} to 1, not {threshold:g}; "
                    "`fenhe bench similar` shows what lower ones do"
                )
        return found
