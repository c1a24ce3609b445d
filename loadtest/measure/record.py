"""One request of a load test, as its client saw it."""

from msgspec import Struct

HITS = ("hit", "join")
"""Outcomes of the result cache for which nothing was generated."""


class Record(Struct, kw_only=True):
    """Units: seconds from the start of the run; `gaps_s` lie between chunks that carry content. `failure` None: the
    answer came whole, or the client left on purpose (`has_left`). `path`, `routed_task` and `cache` are the server's
    headers.
    `is_counted_by_chunks`: the server told no usage, so each of its chunks with content counts as a token.
    """

    session: int
    turn: int = 0
    task: str
    language: str = "en"
    tenant: str | None = None
    scheduled_s: float
    sent_s: float
    first_s: float | None = None
    last_s: float | None = None
    ended_s: float = 0.0
    gaps_s: list[float] = []
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    is_counted_by_chunks: bool = False
    status: int = 0
    failure: str | None = None
    has_left: bool = False
    is_repeat: bool = False
    is_bound: bool = False
    path: str | None = None
    routed_task: str | None = None
    cache: str | None = None

    @property
    def is_complete(self) -> bool:
        return self.failure is None and not self.has_left
