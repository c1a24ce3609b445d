"""The settings of the result cache."""

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from models.bounds import Positive, Seconds, out_of_bounds
from models.errors import Problem
from router.tasks import Task

Url = Annotated[str, Meta(min_length=1)]
SCHEMES = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")

NEVER_SIMILAR: dict[Task, str] = {
    "math": "two problems that differ by one number have two answers",
    "general": "it is what the classifier was unsure of, which may be mathematics",
}
LEAST_SIMILARITY = 0.9


@dataclass(slots=True, kw_only=True, frozen=True)
class CacheConfig:
    """What is kept, for how long, and where: in this process, or behind `url` in Redis or Valkey.

    `max_bytes` bounds the process's own store alone; Redis has its `maxmemory`.
    """

    enabled: Annotated[bool, Meta(description="whether answers are kept for the same request")] = True
    max_bytes: Annotated[Positive, Meta(description="memory for kept answers in this process")] = 64 * 1024 * 1024
    max_entry_bytes: Annotated[Positive, Meta(description="size of one answer")] = 1024 * 1024
    ttl_s: Annotated[int, Meta(ge=1, le=10 * 365 * 86400, description="seconds that an answer is kept")] = 3600
    max_joined: Annotated[Positive, Meta(description="requests that share one generation")] = 1024
    semantic: Annotated[
        dict[Task, float],
        Meta(
            description="per task, how similar a question must be to an answered one to get its answer, from 0.9 to 1",
            extra={"unset": "none, and no semantic cache"},
        ),
    ] = field(default_factory=dict)
    max_questions: Annotated[Positive, Meta(description="questions that the semantic cache compares")] = 1000
    url: Annotated[
        Url | None,
        Meta(
            description="Redis or Valkey that replicas share, redis://HOST:6379/0; needs fenhe[redis]",
            extra={"unset": "none"},
        ),
    ] = None
    namespace: Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{1,64}$", description="prefix of the keys in Redis")] = (
        "fenhe"
    )
    timeout_s: Annotated[Seconds, Meta(description="seconds for one call to Redis")] = 0.05
    max_connections: Annotated[Positive, Meta(description="connections to Redis")] = 32
    breaker_failures: Annotated[Positive, Meta(description="failed calls in a row after which Redis is not asked")] = 5
    breaker_pause_s: Annotated[Seconds, Meta(description="seconds until Redis is asked again")] = 10.0

    def problems(self) -> list[Problem]:
        """Everything wrong with the values. The URL is not repeated: it may hold a password."""
        found = out_of_bounds(self)
        if self.url is not None and not self.url.startswith(SCHEMES):
            found.append(Problem(setting="url", said=f"url must begin with one of {', '.join(SCHEMES)}"))
        if self.url is None and self.max_entry_bytes > self.max_bytes:
            said = f"max_entry_bytes {self.max_entry_bytes} is more than max_bytes {self.max_bytes}"
            found.append(Problem(setting="max_entry_bytes", others=("max_bytes",), said=said))
        for task, threshold in self.semantic.items():
            if (why := _why_not_similar(task, threshold)) is not None:
                found.append(Problem(setting=f"semantic.{task}", said=f"semantic.{task} {why}"))
        return found


def _why_not_similar(task: Task, threshold: float) -> str | None:
    if task in NEVER_SIMILAR:
        return f"cannot be set: {NEVER_SIMILAR[task]}"
    if LEAST_SIMILARITY <= threshold <= 1.0:
        return None
    return f"must be from {LEAST_SIMILARITY} to 1, not {threshold:g}; `fenhe bench similar` shows what lower ones do"
