"""How fast an engine has been lately: tokens a second while work was queueing, and how long single answers took.

Pure: times come from the caller. None stands for "not known yet", and no request is refused because of it.
"""

import math

from engines.sequence import Finish, FinishReason

HALF_LIFE_S = 10.0
"""In the drain rate, a second that is this long ago counts half."""
MIN_MEASURED_S = 0.5
FORGET_S = 60.0
"""How long the figures of single answers are used. Refusing on stale ones would prevent fresh ones."""
DRIFT = 0.05


class DrainRate:
    """Tokens per second over the time that was reported; recent seconds count more."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._measured_s = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        kept = 0.5 ** (seconds / HALF_LIFE_S)
        # Both sums decay alike, and a long interval decays within itself.
        weight = (1.0 - kept) * HALF_LIFE_S / math.log(2) / seconds if seconds > 0 else 1.0
        self._tokens = self._tokens * kept + num_tokens * weight
        self._seconds = self._seconds * kept + seconds * weight
        self._measured_s += seconds

    @property
    def tokens_per_s(self) -> float | None:
        if self._measured_s < MIN_MEASURED_S or self._tokens <= 0.0:
            return None
        return self._tokens / self._seconds


class Fastest:
    """The smallest of recent values: it falls at once and rises slowly."""

    def __init__(self) -> None:
        self._value: float | None = None
        self._seen_s = 0.0

    def add(self, value: float, now_s: float) -> None:
        known = self.value(now_s)
        self._value = value if known is None or value < known else known + DRIFT * (value - known)
        self._seen_s = now_s

    def value(self, now_s: float) -> float | None:
        return None if now_s - self._seen_s > FORGET_S else self._value


class Pace:
    """The pace of one engine. `drain` is fed by the admission, which knows when work is queueing; the rest by every
    sequence that ends."""

    def __init__(self) -> None:
        self.drain = DrainRate()
        self._first_token_s = Fastest()
        self._s_per_token = Fastest()
        self._answer_tokens: float | None = None

    def observe_gap(self, seconds: float) -> None:
        """Ignored: the event bridge reports gaps to all its observers, but they play no part here."""

    def observe_finish(self, request: object, finish: Finish) -> None:
        if finish.reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        num_tokens, times = finish.usage.num_completion_tokens, finish.timings
        known = self._answer_tokens
        self._answer_tokens = num_tokens if known is None else known + DRIFT * (num_tokens - known)
        if times.first_token_s is None or times.admitted_s is None:
            return
        self._first_token_s.add(times.first_token_s - times.admitted_s, times.finished_s)
        if num_tokens > 1:
            self._s_per_token.add((times.finished_s - times.first_token_s) / (num_tokens - 1), times.finished_s)

    def expected_answer(self, max_tokens: float) -> float:
        """How long an answer of at most `max_tokens` will probably be."""
        return max_tokens if self._answer_tokens is None else min(max_tokens, self._answer_tokens)

    def run_s(self, max_tokens: float, now_s: float) -> float:
        """The least time an answer takes once it runs; 0 where nothing is known."""
        first, each = self._first_token_s.value(now_s), self._s_per_token.value(now_s)
        return (first or 0.0) + (each or 0.0) * max(0.0, self.expected_answer(max_tokens) - 1)
