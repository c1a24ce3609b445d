"""Which rows of a step are multiplied by which output matrix of a layer's widths. Knows no tensor.

Rows of one width read a matrix of their own, and few rows wait for it longer than they compute with it. So rows of
several widths share a matrix where theirs differ from it by little: see `differences.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

FEW_ROWS = 16
"""Up to so many rows read less with a shared matrix and a difference than with a matrix of their own; more compute
longer than they read."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Difference:
    """A matrix is the first columns of another, `base`, plus a product of this rank; at 0 it is those columns."""

    base: int
    rank: int


@dataclass(slots=True, kw_only=True, frozen=True)
class Rows:
    """The rows `first` to `end` (exclusive) of a step, whose own matrix is this one."""

    matrix: int
    first: int
    end: int


@dataclass(slots=True, kw_only=True, frozen=True)
class Product:
    """Rows multiplied by one matrix, and those of them to whose result the difference of another one is added."""

    rows: Rows
    corrected: tuple[Rows, ...] = ()


def plan_products(
    counts: Sequence[int], matrices: Sequence[int], differences: Mapping[int, Difference]
) -> tuple[Product, ...]:
    """From the rows of a step, widest first: `counts` as in `StepRows`, `matrices` the one of each width."""

    def read(rows: Rows) -> int:
        difference = differences.get(rows.matrix)
        is_shared = difference is not None and (not difference.rank or rows.end - rows.first <= FEW_ROWS)
        return difference.base if difference is not None and is_shared else rows.matrix

    groups = [(matrix, list(group)) for matrix, group in groupby(_runs(counts, matrices), key=read)]
    return tuple(_product(matrix, group, differences) for matrix, group in groups)


def _runs(counts: Sequence[int], matrices: Sequence[int]) -> Iterator[Rows]:
    """Rows that lie side by side and have the same matrix."""
    first = 0
    for matrix, entries in groupby(range(len(counts)), key=matrices.__getitem__):
        end = counts[list(entries)[-1]]
        if end > first:
            yield Rows(matrix=matrix, first=first, end=end)
            first = end


def _product(matrix: int, group: Sequence[Rows], differences: Mapping[int, Difference]) -> Product:
    if len(group) == 1:
        return Product(rows=group[0])
    corrected = tuple(rows for rows in group if rows.matrix != matrix and differences[rows.matrix].rank)
    return Product(rows=Rows(matrix=matrix, first=group[0].first, end=group[-1].end), corrected=corrected)
