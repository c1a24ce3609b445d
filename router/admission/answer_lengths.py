"""How long answers have been lately, for estimates of how long a queue will take. Pure: times come from the caller."""

from collections import OrderedDict
from dataclasses import dataclass

HALF_LIFE_S = 60.0
"""An answer that is this long ago counts half."""
PRIOR_TOKENS = 256
"""How long an answer is taken to be while nothing is known; it counts as one answer beside those that were seen."""
MAX_KEYS = 1024
"""Tenants and paths that are remembered; the one that was silent longest is forgotten first."""

AnswerKey = tuple[str, str]
"""A tenant ("" where there are no keys) and a path."""


@dataclass(slots=True)
class Mean:
    """Answers and their tokens, both decayed up to `at_s`."""

    num: float = 0.0
    tokens: float = 0.0
    at_s: float = 0.0

    def decay(self, now_s: float) -> None:
        kept = 0.5 ** (max(0.0, now_s - self.at_s) / HALF_LIFE_S)
        self.num, self.tokens, self.at_s = self.num * kept, self.tokens * kept, max(now_s, self.at_s)


class AnswerLengths:
    """How long answers have been lately, each tenant's on each path for itself. Without news a mean goes back to
    `PRIOR_TOKENS`."""

    def __init__(self) -> None:
        self._means: OrderedDict[AnswerKey, Mean] = OrderedDict()

    def __len__(self) -> int:
        return len(self._means)

    def add(self, key: AnswerKey, num_tokens: int, now_s: float) -> None:
        mean = self._means.setdefault(key, Mean())
        self._means.move_to_end(key)
        if len(self._means) > MAX_KEYS:
            self._means.popitem(last=False)
        mean.decay(now_s)
        mean.num += 1.0
        mean.tokens += num_tokens

    def expected(self, key: AnswerKey, now_s: float) -> float:
        mean = self._means.get(key)
        if mean is None:
            return PRIOR_TOKENS
        mean.decay(now_s)
        return (PRIOR_TOKENS + mean.tokens) / (1.0 + mean.num)
