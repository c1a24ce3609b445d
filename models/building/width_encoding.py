"""Compact forms of the matrices in a widths file: int8 with scales, and low-rank differences from another matrix.

A matrix `NAME` is stored in one of three forms: `NAME` itself in fp16 or fp32; `NAME.int8` with `NAME.scales`, one
scale for every row and group of `GROUP` columns; or `NAME.left` and `NAME.right`, whose product is added to the first
columns of a base matrix. The factors of a difference are int8 too, with one scale for each component.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Values = npt.NDArray[np.integer[Any]]
Stored = dict[str, npt.NDArray[Any]]

GROUP = 64
"""Columns that share a scale in a row: outliers of one group do not cost the others their precision."""
LARGEST = 127
NEGLIGIBLE = 1e-5
"""Components of a difference below this share of its matrix are rounding of the arithmetic behind it."""


def encode_int8(name: str, matrix: Array) -> Stored:
    """A matrix as int8 with scales. Shapes: [rows, columns] to `.int8` [rows, columns], `.scales` [rows, groups]."""
    starts = np.arange(0, matrix.shape[1], GROUP)
    largest = np.maximum.reduceat(np.abs(matrix), starts, axis=1)
    scales = np.where(largest > 0, largest / LARGEST, 1.0).astype(np.float16)
    scales = np.maximum(scales, np.finfo(np.float16).tiny)
    rounded = np.rint(matrix / _spread(scales, matrix.shape[1]))
    values = np.clip(rounded, -LARGEST, LARGEST).astype(np.int8)
    return {f"{name}.int8": values, f"{name}.scales": scales}


def decode_int8(values: Values, scales: Array) -> Array:
    """Shapes: [rows, columns] and [rows, groups]; returns [rows, columns]."""
    return np.asarray(values * _spread(scales, values.shape[1]), np.float32)


def _spread(scales: npt.NDArray[Any], num_columns: int) -> Array:
    return np.repeat(scales.astype(np.float32), GROUP, axis=1)[:, :num_columns]


def encode_difference(name: str, matrix: Array, base: Array, rank: int) -> Stored:
    """The best difference of a rank, or of less where that is exact, from the first columns of `base`.

    Shapes: matrix [rows, columns], base at least as many columns; `.left` [rows, rank], `.right` [rank, columns],
    `.left_scales` and `.right_scales` [rank].
    """
    left, sizes, right = _components(np.asarray(matrix - base[:, : matrix.shape[1]], np.float64))
    rank = min(rank, int((sizes > NEGLIGIBLE * np.linalg.norm(matrix)).sum()))
    roots = np.sqrt(sizes[:rank])
    factors = {"left": left[:, :rank] * roots, "right": right[:, :rank] / roots}
    stored: Stored = {}
    for part, factor in factors.items():
        scales = np.maximum(np.abs(factor).max(axis=0, initial=0.0) / LARGEST, np.finfo(np.float32).tiny).astype(
            np.float32
        )
        values = np.clip(np.rint(factor / scales), -LARGEST, LARGEST).astype(np.int8)
        stored[f"{name}.{part}"] = values if part == "left" else np.ascontiguousarray(values.T)
        stored[f"{name}.{part}_scales"] = scales
    return stored


def _components(change: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
    """The singular value decomposition from the smaller side, many times faster for a flat matrix.

    Shapes: [rows, columns] to left [rows, rows], sizes [rows] in falling order, and right [columns, rows]: the right
    singular vectors times their sizes.
    """
    squares, left = np.linalg.eigh(change @ change.T)
    left = left[:, ::-1]
    return left, np.sqrt(np.maximum(squares[::-1], 0.0)), change.T @ left


def decode_difference(left: Values, left_scales: Array, right: Values, right_scales: Array, base: Array) -> Array:
    """Shapes: left [rows, rank], right [rank, columns], both scales [rank], base [rows, at least columns]; returns
    [rows, columns].
    """
    product = (left * left_scales) @ (right * right_scales[:, None])
    return np.asarray(base[:, : right.shape[1]] + product, np.float32)


def num_groups(num_columns: int) -> int:
    return -(-num_columns // GROUP)
