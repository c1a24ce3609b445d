"""What results of operators must agree in."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.native.reference import dequantize


def assert_quantised(q: npt.NDArray[np.uint8], row_scale: Any, expected: Any, rounding: float = 1e-4) -> None:
    assert q.min() >= 1
    np.testing.assert_allclose(row_scale[..., 0], np.abs(expected).max(-1) / 127, rtol=max(rounding, 1e-3))
    assert (np.abs(dequantize(q, row_scale) - expected) <= row_scale * 0.5 + rounding).all()


def assert_same_bits(got: Sequence[Any], expected: Sequence[Any]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.tobytes() == b.tobytes()
