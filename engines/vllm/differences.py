"""How matrices of widths differ, found in the matrices themselves: often by a product of low rank, or not at all."""

import torch
from torch import Tensor

LARGEST_RANK = 128
SAVED = 4
"""A difference is worth knowing when it is at most one part in so many of its matrix."""
NEGLIGIBLE = 2e-6
"""What is smaller than this share of a matrix is rounding."""
MARGIN = 8
"""Components that are looked for beyond the largest rank, which makes those that count exact."""


def find_difference(matrix_HN: Tensor, base_HM: Tensor) -> tuple[Tensor, Tensor] | None:
    """Factors whose product, added to the first columns of `base_HM`, is the matrix; None where their rank is high.

    Shapes: N is M or less; returns [H, rank] and [rank, N], of rank 0 where nothing is to be added.
    Source: Halko, Martinsson and Tropp, Finding Structure with Randomness (SIAM Review 2011), as torch has it.
    """
    change = matrix_HN - base_HM[:, : matrix_HN.shape[1]]
    rows, columns = change.shape
    if not change.any():
        return change.new_empty(rows, 0), change.new_empty(0, columns)
    largest = min(LARGEST_RANK, rows * columns // (SAVED * (rows + columns)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, sizes, right = torch.svd_lowrank(change, min(largest + MARGIN, rows, columns))
    negligible = NEGLIGIBLE * matrix_HN.norm()
    rank = int((sizes > negligible).sum())
    left, right = left[:, :rank] * sizes[:rank], right[:, :rank].T
    if rank > largest or (change - left @ right).norm() > negligible:
        return None
    return left, right
