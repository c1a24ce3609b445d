"""What is recorded about one HTTP request, for its log line and metrics."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.types import Scope

from engines.sequence import Finish, Timings
from models.errors import ServingError
from router.decision import RouteDecision, Target
from server.access.keys import Key, Keyring
from server.access.rate_limit import Meter
from server.wire.base import UsageReply

KEY = "fenhe.record"
SPARED = ("hit", "join")
"""Outcomes of the result cache for which nothing was generated."""


@dataclass(slots=True, kw_only=True)
class Record:
    """`id` is the x-request-id. `key` is made of it, with a mark of the tenant where there are keys, and with a suffix
    while another request of that id is open.

    `tenant` is the one its API key belongs to, None without keys; `meter` counts what that key uses. `time_limit_s` is
    how long its answer may take in all. `cache` is what the result cache did for it: with `hit` and `join` nothing was
    generated for this request. `timings` are those of its first choice in the engine, `error` is the code of its
    error. `is_watched`: online quality chose its answer. `frame_error` makes the event that ends a failed stream;
    None: the one of most APIs.
    """

    id: str
    key: str
    started_s: float = field(default_factory=time.monotonic)
    tenant: str | None = None
    api_key: Key | None = None
    meter: Meter | None = None
    time_limit_s: float = math.inf
    status: int | None = None
    student: str | None = None
    path: str | None = None
    task: str | None = None
    reason: str | None = None
    confidence: float | None = None
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    compute_share: float | None = None
    timings: Timings | None = None
    finish_reasons: tuple[str, ...] = ()
    error: str | None = None
    cache: str | None = None
    is_watched: bool = False
    is_event_stream: bool = False
    frame_error: Callable[[ServingError], bytes] | None = None

    def identify(self, keyring: Keyring, authorization: str, api_key: str = "") -> None:
        """Record whose request it is. Raises: Unauthorized."""
        self.api_key = keyring.require(authorization, api_key)
        self.tenant = self.api_key.tenant
        self.meter = keyring.meter(self.api_key)

    @property
    def deadline_s(self) -> float:
        """When its answer must be finished, on the `time.monotonic` clock."""
        return self.started_s + self.time_limit_s

    def begin(self, decision: RouteDecision, target: Target) -> None:
        """Record where the request went, and why."""
        self.student = target.student
        self.path = target.path
        self.task = decision.task
        self.reason = target.reason.value
        self.confidence = None if decision.confidence is None else round(decision.confidence, 3)

    def finish(self, finishes: Sequence[Finish], usage: UsageReply) -> None:
        """Record the path that really ran, its times, its tokens and its compute."""
        self.path = finishes[0].path
        self.num_prompt_tokens = usage.prompt_tokens
        self.num_cached_tokens = usage.prompt_tokens_details.cached_tokens
        self.num_tokens = usage.completion_tokens
        self.finish_reasons = tuple(finish.reason.value for finish in finishes)
        self.compute_share = 0.0
        if self.cache not in SPARED:
            self.timings = finishes[0].timings
            self.compute_share = usage.fenhe.compute_share

    @property
    def queue_s(self) -> float | None:
        times = self.timings
        return None if times is None or times.admitted_s is None else times.admitted_s - times.queued_s

    @property
    def ttft_s(self) -> float | None:
        """From its arrival to the first token of its first choice."""
        times = self.timings
        return None if times is None or times.first_token_s is None else times.first_token_s - self.started_s


def record_of(scope: Scope) -> Record:
    record = scope[KEY]
    assert isinstance(record, Record)
    return record
