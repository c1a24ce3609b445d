"""The least time that an answer takes, by the fastest of recent ones. Pure: times come from the caller.

What is refused for good is refused by these figures, so each of them errs on the short side; 0 stands for "not known".
"""

from dataclasses import dataclass

from engines.sequence import Timings, Usage
from models.student.manifest import HeadKind

FORGET_S = 60.0
"""How long a figure is used after it was last measured. Refusing on stale ones would prevent fresh ones."""
DRIFT = 0.05
MIN_SEEN = 3
"""Answers after which the fastest of them says anything: one may have been held up by whatever else the machine did."""


@dataclass(slots=True)
class Fastest:
    """The smallest of recent values: it falls at once and rises slowly. `largest` is the largest size seen."""

    value: float
    largest: float
    seen_s: float
    num: int = 1

    def add(self, value: float, size: float, now_s: float) -> None:
        self.value = value if value < self.value else self.value + DRIFT * (value - self.value)
        self.largest = max(self.largest, size)
        self.seen_s = now_s
        self.num += 1

    def is_fresh(self, now_s: float) -> bool:
        return now_s - self.seen_s <= FORGET_S


class LeastTime:
    """The least time of something that takes longer the larger it is. What was measured says nothing of anything
    smaller, so sizes are kept apart, by powers of two."""

    def __init__(self) -> None:
        self._fastest: dict[int, Fastest] = {}

    def lower(self, size: float, seconds: float) -> None:
        """Nothing of this size or below takes longer than this."""
        for power, one in self._fastest.items():
            if power <= _power(size):
                one.value = min(one.value, seconds)

    def add(self, size: float, seconds: float, now_s: float) -> None:
        """Take this for the time that the size takes; whatever was in its way must not be counted."""
        self.lower(size, seconds)
        power = _power(size)
        known = self._fastest.get(power)
        if known is not None and known.is_fresh(now_s):
            known.add(seconds, size, now_s)
        else:
            self._fastest[power] = Fastest(seconds, size, now_s)

    def at(self, size: float, now_s: float) -> float:
        """0 where nothing is known."""
        known = (
            one.value
            for one in self._fastest.values()
            if one.largest <= size and one.num >= MIN_SEEN and one.is_fresh(now_s)
        )
        return max(known, default=0.0)


@dataclass(slots=True, kw_only=True, frozen=True)
class Need:
    """The least that a sequence takes, whatever becomes of it.

    `head` is the one it demands: "cheap" where it takes the engine's. `num_uncached_tokens` are those of its prompt
    that no prefix cache can have; `num_answer_tokens` is 1 where it may end with its first token.
    """

    path: str
    head: HeadKind
    num_prompt_tokens: int
    num_uncached_tokens: int
    num_answer_tokens: int


class PathTimes:
    """The least times on one path with one head."""

    def __init__(self) -> None:
        self._first_token = LeastTime()  # by tokens of the prompt
        self._further_token = LeastTime()  # by tokens in its context

    def learn(self, usage: Usage, timings: Timings, *, is_pure: bool) -> None:
        """Learn from a sequence that ended. One that is not `is_pure` was slowed down, perhaps: it makes a time
        shorter, never longer."""
        if timings.first_token_s is None or timings.admitted_s is None:
            return
        if not usage.num_cached_tokens:
            first_s = timings.first_token_s - timings.admitted_s
            _note(self._first_token, usage.num_prompt_tokens, first_s, timings, is_pure=is_pure)
        num_further = usage.num_completion_tokens - 1
        if num_further > 0:
            each_s = (timings.finished_s - timings.first_token_s) / num_further
            context = _context(usage.num_prompt_tokens, usage.num_completion_tokens)
            _note(self._further_token, context, each_s, timings, is_pure=is_pure)

    def least_s(self, need: Need, now_s: float) -> float:
        each_s = self._further_token.at(_context(need.num_prompt_tokens, need.num_answer_tokens), now_s)
        return self._first_token.at(need.num_uncached_tokens, now_s) + each_s * max(0, need.num_answer_tokens - 1)


def _context(num_prompt_tokens: int, num_answer_tokens: int) -> float:
    """Tokens in the context of an answer's token, on average."""
    return num_prompt_tokens + num_answer_tokens / 2


def _note(times: LeastTime, size: float, seconds: float, timings: Timings, *, is_pure: bool) -> None:
    if is_pure:
        times.add(size, seconds, timings.finished_s)
    else:
        times.lower(size, seconds)


def _power(size: float) -> int:
    return int(size).bit_length()
