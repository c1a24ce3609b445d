"""Quantised matrices, read back as the operators' documentation says, lie within half a step of the original."""

import numpy as np
import numpy.typing as npt
import pytest

from models.graphs.quantise import BlockBits, quantise_blocks_int4, quantise_blocks_int8, quantise_columns

Matrix = npt.NDArray[np.float32]


def random_matrix(shape: tuple[int, int] = (7, 96), offset: float = 0.0) -> Matrix:
    matrix = np.random.default_rng(5).standard_normal(shape, np.float32) + np.float32(offset)
    # One large row and one of zeros: scales differ by row.
    matrix[1] *= 100
    matrix[2] = 0
    return matrix


def nibbles(packed: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    """Low half first. Shapes: last dimension doubles."""
    assert packed is not None
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def read_int4(blocks: BlockBits) -> npt.NDArray[np.float64]:
    values = nibbles(blocks.values).astype(np.float64)
    zero_points = nibbles(blocks.zero_points).astype(np.float64)[:, : blocks.scales.shape[1]]
    return np.asarray((values - zero_points[..., None]) * blocks.scales[..., None])


def read_int8(blocks: BlockBits) -> npt.NDArray[np.float64]:
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
    assert blocks.zero_points is None
    assert blocks.values.shape == (7, num_blocks, 32)
    restored = read_int8(blocks).reshape(7, -1)[:, :num_inputs]
    steps = np.repeat(blocks.scales, 32, axis=1)[:, :num_inputs]
    assert (np.abs(restored - matrix) <= steps * 0.5001).all()


@pytest.mark.parametrize("num_inputs", [96, 64, 80, 33])
@pytest.mark.parametrize("offset", [0.0, 3.0, -3.0])
def test_int4_blocks_are_within_a_step(num_inputs: int, offset: float) -> None:
    matrix = random_matrix((7, num_inputs), offset)
    blocks = quantise_blocks_int4(matrix, 32)
    num_blocks = -(-num_inputs // 32)
    assert blocks.values.shape == (7, num_blocks, 16)
    assert blocks.zero_points is not None
    assert blocks.zero_points.shape == (7, -(-num_blocks // 2))
    restored = read_int4(blocks).reshape(7, -1)[:, :num_inputs]
    steps = np.repeat(blocks.scales, 32, axis=1)[:, :num_inputs]
    # Half a step for the value, half for the zero point.
    assert (np.abs(restored - matrix) <= steps * 1.0001).all()
    assert (np.abs(restored - matrix) <= steps * 0.5001).mean() > 0.9


def test_int4_blocks_keep_zero_exactly() -> None:
    matrix = random_matrix()
    matrix[:, ::3] = 0
    restored = read_int4(quantise_blocks_int4(matrix, 32)).reshape(7, -1)
    assert (restored[:, ::3] == 0).all()


def test_int4_blocks_use_their_whole_range() -> None:
    values = nibbles(quantise_blocks_int4(random_matrix(), 32).values)[[0, 1, 3]]
    assert (values.max(axis=-1) == 15).mean() > 0.5
    assert (values.min(axis=-1) == 0).mean() > 0.5
