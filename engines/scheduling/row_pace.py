"""How many rows a step has where tenants share it: a stream waits for all rows that run beside it.

Thirty rows take hardly longer than one where a processor has instructions for products of bytes, and several times as
long where it has none. So steps are bounded in time: a tenant with more rows than its part of one has them take turns
(`turns.py`). That is done only where another tenant gains by it, because fewer rows a step are fewer tokens a second
for all of them together. How long a step takes is learned from those without prompts.
"""

from collections import Counter
from collections.abc import Iterable

from engines.sequence import Sequence, mean_with

STREAMS_SHARE = 2 / 3
"""Of the bound on a step: prompts of other tenants may take half as long as the streams' pass beside it."""
TIMES_ALONE = 2.0
"""A step may always take this many times as long as one of the fewest rows that were seen: of a large model a single
row may take longer than the bound."""
LEAST_ROWS = 4
TIMES_LONGER = 2
"""A step counts as at most this many times the mean of those with as many rows; the first one as at most this many
times what those with other numbers of rows suggest. A longer one was interrupted."""


class RowPace:
    """Owned by the engine's thread. `busy_step_s` None: steps have any number of rows."""

    def __init__(self, busy_step_s: float | None) -> None:
        self._bound_s = None if busy_step_s is None else STREAMS_SHARE * busy_step_s
        self._step_s: dict[int, float] = {}
        """By number of rows."""
        self._most_rows: int | None = None
        """None: no step took too long yet."""

    def note_step(self, num_rows: int, seconds: float) -> None:
        """The pass of so many rows and no prompt, and choosing their tokens, took so long.

        The bound on rows follows at once if that was too long, and else rises by one row at a time.
        """
        if self._bound_s is None or num_rows < 1:
            return
        mean_s = self._step_s.get(num_rows)
        usual_s = self._most_s(num_rows) if mean_s is None else mean_s
        mean_s = mean_with(mean_s, seconds if usual_s is None else min(seconds, TIMES_LONGER * usual_s))
        self._step_s[num_rows] = mean_s
        self._correct_others(num_rows, mean_s)
        bound_s = max(self._bound_s, TIMES_ALONE * self._step_s[min(self._step_s)])
        if mean_s > bound_s:
            self._most_rows = max(int(num_rows * bound_s / mean_s), LEAST_ROWS)
        elif self._most_rows is not None and num_rows >= self._most_rows:
            self._most_rows = num_rows + 1

    def _most_s(self, num_rows: int) -> float | None:
        """How long a step of a number of rows that was never seen takes at most, by those that were; None: by none."""
        return min((max(num_rows / other, 1) * seconds for other, seconds in self._step_s.items()), default=None)

    def _correct_others(self, num_rows: int, mean_s: float) -> None:
        """By the newest mean: more rows take no less time than fewer, and no more than in proportion. Without that a
        figure from a cold start would stay wrong for as long as that number of rows does not come again."""
        for other, seconds in self._step_s.items():
            least_s, most_s = sorted((mean_s, mean_s * other / num_rows))
            self._step_s[other] = min(max(seconds, least_s), most_s)

    def most_rows(self, rows: Iterable[Sequence]) -> int | None:
        """How many of these rows the next step has at most; None: all. So it is while no tenant has as few rows as its
        equal part of a bounded step: nobody would wait less."""
        by_tenant = Counter(row.tenant for row in rows)
        if self._most_rows is None or by_tenant.total() <= self._most_rows:
            return None
        part = self._most_rows / len(by_tenant)
        return self._most_rows if min(by_tenant.values()) <= part else None
