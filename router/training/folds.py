"""Folds of the real rows that leave out whole data sets: no data set is on both sides.

Sources of one family (`MMLU law`, `MMLU mathematics`) share a style, so they are left out together.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from router.training.corpus import Row


def family(source: str) -> str:
    """The data set a source belongs to: its first word."""
    return source.split(maxsplit=1)[0] if source.strip() else source


def assign_folds(rows: Iterable[Row], num_folds: int) -> dict[str, int]:
    """A fold per family; families with the same label and language are spread over the folds."""
    sizes: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for row in rows:
        sizes[family(row.source)][row.label, row.lang] += 1
    loads: list[Counter[tuple[str, str]]] = [Counter() for _ in range(num_folds)]
    folds = {}
    for name in sorted(sizes, key=lambda name: (-len(sizes[name]), -sizes[name].total(), name)):
        fold = min(range(num_folds), key=lambda number: _crowding(loads[number], sizes[name]))
        folds[name] = fold
        loads[fold] += sizes[name]
    return folds


def _crowding(load: Counter[tuple[str, str]], size: Counter[tuple[str, str]]) -> tuple[int, int]:
    return sum(load[kind] > 0 for kind in size), load.total()


def fold_numbers(rows: Sequence[Row], num_folds: int) -> list[int | None]:
    """The fold a row is tested in; None for written rows, which are always trained on."""
    folds = assign_folds((row for row in rows if not row.is_written), num_folds)
    return [None if row.is_written else folds[family(row.source)] for row in rows]
