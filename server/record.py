"""What is noted about one HTTP request on its way, for the log line and the metrics at its end."""

import time
from dataclasses import dataclass, field

from starlette.types import Scope

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
    num_tokens: int = 0
    is_event_stream: bool = False

    def begin(self, student: str, path: str) -> None:
        """Note where the request went."""
        self.student = student
        self.path = path

    def finish(self, path: str, num_tokens: int) -> None:
        """Note the path that really ran, and the tokens it brought."""
        self.path = path
        self.num_tokens = num_tokens


def record_of(scope: Scope) -> Record:
    record = scope[KEY]
    assert isinstance(record, Record)
    return record
