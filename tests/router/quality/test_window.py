"""What a path keeps by decayed scores, and how sure that is."""

import numpy as np
import pytest

from engines.answer_score import AnswerScore
from router.quality.window import MAX_SCORES, Window

DAY_S = 86_400.0


def score(kept: float, *, num_tokens: int = 100, nats: float = 100.0) -> AnswerScore:
    return AnswerScore(
        num_tokens=num_tokens,
        nats=nats,
        expected_nats=kept * nats,
        num_agreed=num_tokens // 2,
        expected_agreed=0.6 * num_tokens,
    )


def test_figure_is_the_ratio_of_sums_with_the_gap_per_token() -> None:
    window = Window()
    window.add(score(0.5, num_tokens=300, nats=300.0), 0.0)
    window.add(score(1.0), 0.0)
    figure = window.figure(0.0, DAY_S, 10**6)
    assert figure is not None
    assert figure.kept == pytest.approx(250 / 400, rel=1e-3)
    assert figure.gap == pytest.approx(150 / 400, rel=1e-3)
    assert figure.agreement == pytest.approx(0.5)
    assert figure.expected_agreement == pytest.approx(0.6)
    assert figure.low < figure.kept < figure.high


def test_empty_window_says_nothing() -> None:
    assert Window().figure(0.0, DAY_S, 32) is None


def test_old_scores_lose_weight_and_then_say_nothing() -> None:
    window = Window()
    for _ in range(20):
        window.add(score(0.5), 0.0)
    window.add(score(1.0), DAY_S)
    figure = window.figure(DAY_S, DAY_S, 10**6)
    assert figure is not None
    assert figure.kept == pytest.approx((10 * 0.5 + 1) / 11, rel=1e-3)
    assert window.figure(9 * DAY_S, DAY_S, 10**6) is None


def test_effective_number_is_that_of_equal_scores_or_what_the_half_life_leaves() -> None:
    window = Window()
    for _ in range(10):
        window.add(score(0.9), 0.0)
    few = window.figure(0.0, DAY_S, 10**6)
    assert few is not None
    assert few.effective_samples == pytest.approx(10, rel=1e-3)
    for _ in range(2 * MAX_SCORES):
        window.add(score(0.9), 0.0)
    many = window.figure(0.0, DAY_S, 32)
    assert many is not None
    assert many.effective_samples == pytest.approx(2 * 32 / np.log(2), rel=0.05)
    assert len(window) == MAX_SCORES


@pytest.mark.parametrize("half_life", [16, 10**6])
def test_interval_covers_the_truth_as_often_as_it_says(half_life: int) -> None:
    """Scores of a path that keeps 0.8, answers of different lengths: the truth lies in about 95 % of the intervals."""
    rng, covered, tries = np.random.default_rng(3), 0, 300
    for _ in range(tries):
        window = Window()
        for _ in range(60):
            num_tokens = int(rng.integers(20, 200))
            nats = num_tokens * rng.gamma(9.0, 1 / 9)
            window.add(score(0.8 + rng.normal(0.0, 0.1), num_tokens=num_tokens, nats=nats), 0.0)
        figure = window.figure(0.0, DAY_S, half_life)
        assert figure is not None
        covered += figure.low <= 0.8 <= figure.high
    assert 0.88 <= covered / tries <= 0.98


def test_path_that_finds_no_nats_keeps_all() -> None:
    window = Window()
    window.add(AnswerScore(num_tokens=5), 0.0)
    figure = window.figure(0.0, DAY_S, 32)
    assert figure is not None
    assert (figure.kept, figure.low, figure.high, figure.gap) == (1.0, 1.0, 1.0, 0.0)
