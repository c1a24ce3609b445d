import numpy as np
import pytest

from models.architecture import RopeScaling
from models.rope import frequency_divisors, plain_frequencies


def test_frequencies_start_at_one_radian_and_fall() -> None:
    frequencies = plain_frequencies(8, 10_000.0)
    np.testing.assert_allclose(frequencies, [1.0, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(("kind", "factor"), [("default", 1.0), ("linear", 4.0)])
def test_divisors_are_even_without_bands(kind: str, factor: float) -> None:
    scaling = RopeScaling(kind="linear", factor=4.0) if kind == "linear" else RopeScaling()
    assert frequency_divisors(8, 10_000.0, scaling).tolist() == [factor] * 4


def test_llama3_divisors_stretch_long_waves_only() -> None:
    divisors = frequency_divisors(64, 500_000.0, RopeScaling(kind="llama3", factor=8.0))
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    assert (np.diff(divisors) >= 0).all()
    assert ((divisors > 1.0) & (divisors < 8.0)).any()
