"""A large matrix some rows at a time: what is made of it on the way takes megabytes, not as much as the matrix."""

from collections.abc import Iterator

SLICE_VALUES = 1 << 22


def row_slices(num_rows: int, row_size: int) -> Iterator[slice]:
    """All rows in order, about `SLICE_VALUES` values at a time and at least one row."""
    step = max(1, SLICE_VALUES // max(1, row_size))
    for first in range(0, num_rows, step):
        yield slice(first, min(first + step, num_rows))
