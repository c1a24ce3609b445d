"""Quantised matrices, read back as the operators' documentation says, lie within half a step of the original."""

import numpy as np
import numpy.typing as npt
import pytest

from models.graphs.quantise import BlockInt8, quantise_blocks_int8, quantise_columns

Matrix = npt.NDArray[np.float32]


def random_matrix(shape: tuple[int, int] = (7, 96), offset: float = 0.0) -> Matrix:
    matrix = np.random.default_rng(5).standard_normal(shape, np.float32) + np.float32(offset)
    # One large row and one of zeros: scales differ by row.
    matrix[1] *= 100
    matrix[2] = 0
    return matrix


def read_int8(blocks: BlockInt8) -> npt.NDArray[np.float64]:
    return np.asarray((blocks.values.astype(np.float64) - 128) * blocks.scales[..., None])


def test_columns_are_within_half_a_step() -> None:
    matrix = random_matrix()
    columns = quantise_columns(matrix)
    assert columns.values.shape == (96, 7)
    assert columns.values.flags.c_contiguous
    assert np.abs(columns.values).max() <= 127
    restored = columns.values.T * columns.scales[:, None].astype(np.float64)
    assert (np.abs(restored - matrix) <= columns.scales[:, None] * 0.5001).all()
    np.testing.assert_allclose(columns.scales[1], np.abs(matrix[1]).max() / 127, rtol=1e-6)


def test_columns_of_zeros_stay_finite() -> None:
    columns = quantise_columns(np.zeros((2, 8), np.float32))
    assert not columns.values.any()
    assert np.isfinite(columns.scales).all()


@pytest.mark.parametrize("num_inputs", [96, 80, 33])
def test_int8_blocks_are_within_half_a_step(num_inputs: int) -> None:
    matrix = random_matrix((7, num_inputs))
    blocks = quantise_blocks_int8(matrix, 32)
    num_blocks = -(-num_inputs // 32)
    assert blocks.values.shape == (7, num_blocks, 32)
    restored = read_int8(blocks).reshape(7, -1)[:, :num_inputs]
    steps = np.repeat(blocks.scales, 32, axis=1)[:, :num_inputs]
    assert (np.abs(restored - matrix) <= steps * 0.5001).all()
