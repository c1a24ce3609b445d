"""Intervals by hand and from textbooks."""

import numpy as np
import pytest

from models.evaluation.resampling import divided, interval, proportion_interval, resampled_ratios


def test_proportion_interval_is_wilsons() -> None:
    low, high = proportion_interval(0.8, 10)  # the textbook example
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


def test_rows_are_resampled_in_pairs() -> None:
    numbers = np.array([1.0, 5.0, 0.5, 3.0])
    assert resampled_ratios(numbers, 2 * numbers, "d", 0).tolist() == pytest.approx([0.5] * 2000)


def test_a_ratio_to_nothing_is_infinite_unless_both_are_equal() -> None:
    nothing, something = np.zeros(3), np.ones(3)
    assert set(resampled_ratios(something, nothing, "d", 0).tolist()) == {np.inf}
    assert set(resampled_ratios(nothing, nothing, "d", 0).tolist()) == {1.0}
    assert interval(np.array([np.inf, 0.5, 0.5]), 0.75) == (0.5, 0.75)
    assert interval(np.array([np.inf]), 0.75) == (0.75, 0.75)


def test_nothing_is_kept_wholly_by_what_has_as_much() -> None:
    assert [divided(1.0, 2.0), divided(0.0, 0.0), divided(0.1, -0.2), divided(-0.3, -0.2)] == [0.5, 1.0, 1.0, 0.0]
