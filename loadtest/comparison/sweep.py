"""The knee: the highest load at which a server still keeps its SLO, found by trying."""

from collections.abc import Callable
from dataclasses import dataclass, field

STEP = 1.3
LEAST_RATE = 0.05


@dataclass(slots=True, kw_only=True)
class Search:
    """`tried` has every load and whether it was kept. `best` None: not even the least one was."""

    best: float | None = None
    worst: float | None = None
    tried: list[tuple[float, bool]] = field(default_factory=list)

    def note(self, load: float, is_kept: bool) -> None:
        self.tried.append((load, is_kept))
        if is_kept and (self.best is None or load > self.best):
            self.best = load
        if not is_kept and (self.worst is None or load < self.worst):
            self.worst = load
        if self.best is not None and self.worst is not None and self.worst <= self.best:
            self.worst = None  # noise: what failed lies below what was kept

    @property
    def is_bracketed(self) -> bool:
        return self.best is not None and self.worst is not None


def find_rate(keeps: Callable[[float], bool], start: float, *, most_tries: int, precision: float) -> Search:
    """From `start` in steps of `STEP` until one rate is kept and the next is not, then between the two, until they are
    within `precision` of each other (1.05: five percent) or `most_tries` are over.
    """
    search, rate = Search(), max(start, LEAST_RATE)
    for _ in range(most_tries):
        search.note(rate, keeps(rate))
        if search.is_bracketed:
            assert search.best is not None
            assert search.worst is not None
            if search.worst / search.best <= precision:
                break
            rate = (search.best * search.worst) ** 0.5
        elif search.best is not None:
            rate = search.best * STEP
        elif rate <= LEAST_RATE:
            break
        else:
            rate = max(rate / STEP**2, LEAST_RATE)
    return search


def find_concurrency(keeps: Callable[[int], bool], known: dict[int, bool], *, most_tries: int) -> Search:
    """Between the highest one known to be kept and the next that is not, by halves."""
    search = Search()
    for load in sorted(known):
        search.note(load, known[load])
    for _ in range(most_tries):
        best, worst = int(search.best or 0), search.worst
        if worst is None or worst - best <= 1:
            break
        middle = (best + int(worst)) // 2
        search.note(middle, keeps(middle))
    return search


def confirmed(keeps: Callable[[float], bool], rate: float, *, most_tries: int) -> float | None:
    """The rate, or the next lower one by steps of five percent, that is kept over the whole length and all seeds."""
    for _ in range(most_tries):
        if keeps(rate):
            return rate
        rate /= 1.05
    return None
