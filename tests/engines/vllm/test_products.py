"""Which rows are multiplied by which matrix, and what two matrices have in common."""

import numpy as np
import pytest
import torch

from engines.vllm.differences import LARGEST_RANK, find_difference
from engines.vllm.products import FEW_ROWS, Difference, Product, Rows, plan_products

DIFFERENCES = {2: Difference(base=1, rank=3), 3: Difference(base=1, rank=0)}
MATRICES = (0, 1, 2, 3)


def test_few_rows_share_a_matrix_and_have_their_difference_added() -> None:
    assert plan_products((2, 5, 6, 9), MATRICES, DIFFERENCES) == (
        Product(rows=Rows(matrix=0, first=0, end=2)),
        Product(rows=Rows(matrix=1, first=2, end=9), corrected=(Rows(matrix=2, first=5, end=6),)),
    )


def test_many_rows_read_a_matrix_of_their_own() -> None:
    last = 6 + FEW_ROWS
    found = plan_products((2, 5, last, last + 1), MATRICES, DIFFERENCES)
    assert [product.rows.matrix for product in found] == [0, 1, 2, 3]
    assert not any(product.corrected for product in found)


def test_rows_that_share_with_nobody_read_their_own_matrix() -> None:
    assert plan_products((0, 0, 4, 4), MATRICES, DIFFERENCES) == (Product(rows=Rows(matrix=2, first=0, end=4)),)


def test_widths_of_one_matrix_are_one_product() -> None:
    assert plan_products((1, 3, 3, 7), (0, 1, 1, 1), {}) == (
        Product(rows=Rows(matrix=0, first=0, end=1)),
        Product(rows=Rows(matrix=1, first=1, end=7)),
    )


def test_any_rows_get_the_product_of_their_own_matrix() -> None:
    random = np.random.default_rng(5)
    sizes, factors = (12, 10, 8, 8), {2: (random.normal(size=(6, 3)), random.normal(size=(3, 8)))}
    matrices = {0: random.normal(size=(6, 12)), 1: random.normal(size=(6, 10))}
    matrices[2], matrices[3] = matrices[1][:, :8] + factors[2][0] @ factors[2][1], matrices[1][:, :8]
    for _ in range(200):
        counts = tuple(np.cumsum(random.integers(0, 2 * FEW_ROWS, 4) * random.integers(0, 2, 4)).tolist())
        inputs, expected, first = np.zeros((counts[-1], 12)), np.zeros((counts[-1], 6)), 0
        for entry, end in enumerate(counts):
            inputs[first:end, : sizes[entry]] = random.normal(size=(end - first, sizes[entry]))
            expected[first:end] = inputs[first:end, : sizes[entry]] @ matrices[entry].T
            first = end
        found = np.zeros_like(expected)
        for product in plan_products(counts, MATRICES, DIFFERENCES):
            rows, size = product.rows, sizes[product.rows.matrix]
            found[rows.first : rows.end] += inputs[rows.first : rows.end, :size] @ matrices[rows.matrix].T
            for one in product.corrected:
                left, right = factors[one.matrix]
                found[one.first : one.end] += inputs[one.first : one.end, : right.shape[1]] @ right.T @ left.T
        np.testing.assert_allclose(found, expected, atol=1e-9)


def _normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 7, 24])
def test_a_difference_of_low_rank_is_found(rank: int) -> None:
    base = _normal(0, 200, 400)
    matrix = base[:, :240] + 0.1 * _normal(1, 200, rank) @ _normal(2, rank, 240)
    found = find_difference(matrix, base)
    assert found is not None
    assert (found[0].shape, found[1].shape) == ((200, rank), (rank, 240))
    torch.testing.assert_close(base[:, :240] + found[0] @ found[1], matrix, atol=1e-4, rtol=1e-5)


def test_a_part_of_a_matrix_differs_by_nothing() -> None:
    base = _normal(0, 96, 300)
    found = find_difference(base[:, :64].clone(), base)
    assert found is not None
    assert found[0].shape == (96, 0)


@pytest.mark.parametrize("rank", [40, LARGEST_RANK + 4])
def test_differences_that_save_nothing_are_left(rank: int) -> None:
    base = _normal(0, 200, 400)
    assert find_difference(base + _normal(1, 200, rank) @ _normal(2, rank, 400), base) is None
    assert find_difference(_normal(3, 200, 400), base) is None
