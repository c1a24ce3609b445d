"""Turning a row spreads its outliers, so that rounding it keeps the small channels too."""

import numpy as np
import numpy.typing as npt

from models.graphs.rotate import hadamard


def rounded(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What int8 with one scale for the row leaves of it."""
    scale = np.abs(row).max() / 127
    return np.asarray(np.round(row / scale) * scale)


def test_rotate_keeps_the_small_channels_as_its_example_says() -> None:
    row = np.array([80, 0.2, 0.3, 0.1])
    assert rounded(row).round(2).tolist() == [80, 0, 0, 0]
    turned = row @ hadamard(4).astype(np.float64)
    assert turned.round(1).tolist() == [40.3, 40.0, 39.9, 39.8]
    # The matrix is its own inverse.
    assert (rounded(turned) @ hadamard(4)).round(2).tolist() == [79.97, 0.32, 0.32, 0.0]
