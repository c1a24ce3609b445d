"""Scores of one path's answers, newer ones counting more, and what the path keeps by them, with an interval.

The newest score weighs 1; a score weighs half as much after `half_life_s` seconds, and half as much behind
`half_life_samples` newer ones. Weighted scores say less than as many equal ones: as much as `effective_samples` =
(sum of weights)^2 / (sum of squared weights).
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from engines.answer_score import AnswerScore
from models.evaluation.resampling import divided, interval

Double = npt.NDArray[np.float64]

MAX_SCORES = 512
LEAST_WEIGHT = 1 / 64
"""Lighter scores are left out."""
NUM_RESAMPLES = 400
SEED = 20


@dataclass(slots=True, kw_only=True, frozen=True)
class Figure:
    """`kept`: the nats that the full path would have expected of its own answers over those that it found, so 1 is as
    good as the full path and less is worse; `low` and `high` are its 95 % interval. `gap` is how many nats per token
    the answers are less likely than the full path's own would be. `agreement` is the share of tokens that are the full
    path's likeliest, `expected_agreement` what that would be in its own answers."""

    kept: float
    low: float
    high: float
    gap: float
    agreement: float
    expected_agreement: float
    effective_samples: float
    num_samples: int


class Window:
    """The scores of one path, with one head, on one task."""

    def __init__(self) -> None:
        self._scores: deque[tuple[float, AnswerScore]] = deque(maxlen=MAX_SCORES)

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, score: AnswerScore, now_s: float) -> None:
        self._scores.append((now_s, score))

    def figure(self, now_s: float, half_life_s: float, half_life_samples: int) -> Figure | None:
        """None without scores that weigh anything. Not while another thread adds.

        Source: Kish, Survey Sampling, 8.2 (effective sample size); Efron and Tibshirani, An Introduction to the
        Bootstrap, chapter 13: answers are drawn again with probabilities by their weights, as many as they are worth.
        """
        scores = list(self._scores)
        ages_s = np.array([now_s - at_s for at_s, _ in scores])
        num_newer = np.arange(len(scores) - 1, -1, -1)
        weights = 0.5 ** (np.maximum(ages_s, 0.0) / half_life_s + num_newer / half_life_samples)
        columns = np.array([_columns(score) for _, score in scores])
        is_heavy = weights >= LEAST_WEIGHT
        return _figure(columns[is_heavy], weights[is_heavy]) if is_heavy.any() else None


@lru_cache(maxsize=8)
def _draws(count: int) -> Double:
    """The same random numbers for every figure of so many scores. Shapes: [resamples, count]."""
    return np.random.default_rng(SEED).random((NUM_RESAMPLES, count))


def _columns(one: AnswerScore) -> tuple[float, ...]:
    return one.expected_nats, one.nats, one.num_tokens, one.num_agreed, one.expected_agreed


def _figure(columns: Double, weights: Double) -> Figure:
    """Shapes: columns [scores, 5], weights [scores]."""
    expected, nats, tokens, agreed, expected_agreed = (weights @ columns).tolist()
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    drawn = np.searchsorted(np.cumsum(weights), weights.sum() * _draws(max(1, round(effective))))
    drawn = np.minimum(drawn, len(columns) - 1)
    kept = divided(expected, nats)
    above, below = columns[:, 0].take(drawn).sum(axis=1), columns[:, 1].take(drawn).sum(axis=1)
    ratios = np.where(below > 0, above / np.where(below > 0, below, 1.0), np.where(above == below, 1.0, np.inf))
    low, high = interval(ratios, kept)
    return Figure(
        kept=kept,
        low=low,
        high=high,
        gap=(nats - expected) / tokens,
        agreement=agreed / tokens,
        expected_agreement=expected_agreed / tokens,
        effective_samples=effective,
        num_samples=len(columns),
    )
