"""Turning a row spreads its outliers, so that rounding it keeps the small channels too."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.graphs.rotate import RotatedSource, hadamard, hadamard_size
from models.sources.huggingface import HuggingFaceSource


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


@pytest.mark.parametrize("intermediate_size", [15, 16, 64, 96, 2048])
def test_rotate_mixes_the_input_of_down_proj_by_the_hadamard_matrix(tiny_source: Any, intermediate_size: int) -> None:
    """Whether few parts or many, and more rows than are mixed at a time."""
    source = HuggingFaceSource(tiny_source("llama", intermediate_size=intermediate_size))
    name, rotated = "model.layers.0.mlp.down_proj.weight", RotatedSource(source)
    size = hadamard_size(intermediate_size)
    turned = rotated._rotation.T @ source.read(name)
    expected = np.einsum("pq,oqr->opr", hadamard(size), turned.reshape(len(turned), size, -1))
    np.testing.assert_allclose(rotated.read(name), expected.reshape(turned.shape), atol=1e-6)
