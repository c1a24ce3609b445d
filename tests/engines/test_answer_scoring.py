"""An answer's score: against what the same sampling would have drawn, so that a path's own answers cost nothing."""

from typing import Any

import numpy as np
import pytest

from engines.answer_score import AnswerScore
from engines.answer_scoring import score_answer
from engines.drawing import draw, drawn_from, uniform
from engines.sequence import SamplingParams

SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.2},
    "hot": {"temperature": 1.7},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.05},
    "all": {"temperature": 0.8, "top_p": 0.8, "top_k": 12, "min_p": 0.01},
    "one": {"top_k": 1},
    "greedy": {"temperature": 0.0},
}


def logits_of(num_rows: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0.0, 2.0, (num_rows, 200)).astype(np.float32)


@pytest.mark.parametrize("name", [name for name in SAMPLINGS if name != "greedy"])
def test_probabilities_are_those_that_tokens_are_drawn_with(name: str) -> None:
    """The drawn token at evenly spaced points of the cumulative distribution is as frequent as it is probable."""
    params = SamplingParams(max_tokens=1, **SAMPLINGS[name])
    num_points = 4000
    for row in logits_of(3):
        tokens, shares = drawn_from(row, params)
        drawn = [draw(row, params, (index + 0.5) / num_points) for index in range(num_points)]
        counts = np.bincount(drawn, minlength=len(row)) / num_points
        expected = np.zeros(len(row))
        expected[tokens] = shares
        assert np.abs(counts - expected).max() <= 1.5 / num_points
        assert shares.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_own_answers_differ_from_what_is_expected_by_chance_alone(name: str) -> None:
    params = SamplingParams(max_tokens=1, **SAMPLINGS[name])
    logits = logits_of(3000)
    tokens = [
        int(row.argmax()) if params.is_greedy else draw(row, params, uniform(5, index))
        for index, row in enumerate(logits)
    ]
    score = score_answer(logits, tokens, params)
    each = [score_answer(logits[index : index + 1], tokens[index : index + 1], params) for index in range(500)]
    spread = float(np.std([one.nats - one.expected_nats for one in each]))
    assert abs(score.nats - score.expected_nats) <= 4 * spread * np.sqrt(len(tokens)) + 1e-2
    spread = float(np.std([one.num_agreed - one.expected_agreed for one in each]))
    assert abs(score.num_agreed - score.expected_agreed) <= 4 * spread * np.sqrt(len(tokens)) + 1e-2
    assert score.num_tokens == len(tokens)


def test_answers_of_another_distribution_are_less_likely_than_expected() -> None:
    params = SamplingParams(max_tokens=1, temperature=0.7, top_p=0.95)
    logits = logits_of(2000)
    worse = logits + np.random.default_rng(1).normal(0.0, 1.0, logits.shape).astype(np.float32)
    tokens = [draw(row, params, uniform(5, index)) for index, row in enumerate(worse)]
    score = score_answer(logits, tokens, params)
    assert score.nats > 1.1 * score.expected_nats
    assert score.num_agreed < score.expected_agreed


def test_score_is_the_likelihood_and_the_expectation_by_hand() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32))
    score = score_answer(logits, [1, 0], SamplingParams(max_tokens=1, top_k=2))
    first = -(0.2 * np.log(0.2) + 0.7 * np.log(0.7)) / 0.9
    second = -(0.5 * np.log(0.5) + 0.25 * np.log(0.25)) / 0.75
    assert score.nats == pytest.approx(-np.log(0.2) - np.log(0.5), rel=1e-5)
    assert score.expected_nats == pytest.approx(first + second, rel=1e-5)
    assert (score.num_agreed, score.num_tokens) == (1, 2)
    assert score.expected_agreed == pytest.approx(0.7 / 0.9 + 0.5 / 0.75, rel=1e-5)


def test_scores_of_parts_add_up() -> None:
    params = SamplingParams(max_tokens=1, temperature=0.7, top_p=0.9)
    logits, tokens = logits_of(40), list(range(40))
    parts = [score_answer(logits[at : at + 8], tokens[at : at + 8], params) for at in range(0, 40, 8)]
    whole, summed = score_answer(logits, tokens, params), sum(parts, AnswerScore())
    assert summed.num_tokens == whole.num_tokens
    assert (summed.nats, summed.expected_nats) == pytest.approx((whole.nats, whole.expected_nats), rel=1e-6)


def test_broken_logits_are_refused() -> None:
    with pytest.raises(FloatingPointError):
        score_answer(np.array([[0.0, np.nan]], np.float32), [0], SamplingParams(max_tokens=1))
