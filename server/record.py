"""What is noted about one HTTP request on its way, for the log line and the metrics at its end."""

import time
from dataclasses import dataclass, field

from starlette.types import Scope

from router.decision import RouteDecision, Target

KEY = "fenhe.record"


@dataclass(slots=True, kw_only=True)
class Record:
    """`id` is the x-request-id; `key` too, with a suffix while another request under that id is open."""

    id: str
    key: str
    started_s: float = field(default_factory=time.monotonic)
    status: int | None = None
    student: str | None = None
    path: str | None = None
    task: str | None = None
    reason: str | None = None
    confidence: float | None = None
    num_tokens: int = 0
    is_event_stream: bool = False

    def begin(self, decision: RouteDecision, target: Target) -> None:
        """Note where the request went, and why."""
        self.student = target.student
        self.path = target.path
        self.task = decision.task
        self.reason = target.reason.value
        self.confidence = None if decision.confidence is None else round(decision.confidence, 3)

    def finish(self, path: str, num_tokens: int) -> None:
        """Note the path that really ran, and the tokens it brought."""
        self.path = path
        self.num_tokens = num_tokens


def record_of(scope: Scope) -> Record:
    record = scope[KEY]
    assert isinstance(record, Record)
    return record
