"""Draws a token from one row of logits: temperature, filters, and a number that depends on seed and position alone.

So the same seed gives the same text whatever else runs.
"""

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engines.ranking import Likeliest, likeliest, rank
from engines.sequence import SamplingParams

Row = npt.NDArray[np.float32]

SPAN = 4.0
"""First guess of how far below the largest logit, in nats, top-p and top-k reach. Kept small: the tokens within have
to be sorted, and widening it costs little."""
SLACK = 1e-6
"""Nats below min-p within which tokens are still compared exactly."""
BLOCK = 128
"""Tokens per block of the two-level search in the cumulative distribution."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone, the same on every machine.

    Source: splitmix64 (Steele, Lea, Flood 2014), whose state is a counter.
    """
    mask = (1 << 64) - 1
    value = (_mix(seed & mask) + (position + 1) * 0x9E3779B97F4A7C15) & mask
    return (_mix(value) >> 11) / (1 << 53)


def _mix(value: int) -> int:
    mask = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


class Chooser(Protocol):
    """Chooses tokens of one row after the other; owned by one thread. Whoever does it, the tokens are the same."""

    def draw(self, logits: Row, params: SamplingParams, point: float) -> int:
        """The token at `point` of the cumulative distribution after temperature, min-p, top-k and top-p, in that order.

        Shapes: logits [tokens].
        """
        ...

    def likeliest(self, logits: Row, count: int) -> Likeliest:
        """The `count` largest of a row, and what log-probabilities are counted from. Shapes: logits [tokens]."""
        ...


class PlainChooser:
    """With numpy alone."""

    def draw(self, logits: Row, params: SamplingParams, point: float) -> int:
        return draw(logits, params, point)

    def likeliest(self, logits: Row, count: int) -> Likeliest:
        return likeliest(logits, count)


def draw(logits: Row, params: SamplingParams, point: float) -> int:
    """As `Chooser.draw`."""
    scaled = _scale(logits, params)
    if not has_filters(params):
        return _draw_from_all(scaled, point)
    return _draw_filtered(scaled, params, point)


def has_filters(params: SamplingParams) -> bool:
    return params.top_k is not None or params.top_p < 1.0 or params.min_p > 0.0


def _scale(logits: Row, params: SamplingParams) -> npt.NDArray[np.float64]:
    """Nats above the largest logit. Float64 and a shift by the largest: a temperature near zero must not overflow."""
    scaled = logits.astype(np.float64)
    scaled -= logits.max()
    scaled /= params.temperature
    return scaled


def drawn_from(logits: Row, params: SamplingParams) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that `draw` can return, and the probability of each.

    Shapes: logits [tokens], returns two of the same length.
    """
    scaled = _scale(logits, params)
    if not has_filters(params):
        weights = np.exp(scaled)
        return np.arange(len(weights)), weights / weights.sum()
    limit, total = min(params.top_k or len(scaled), len(scaled)), _total(scaled, params)
    tokens = _drawable(scaled, params, limit, total)
    tokens = tokens[np.argsort(-scaled[tokens], kind="stable")]
    weights = np.exp(scaled[tokens])
    num_kept = _num_kept(weights, params, limit)
    if params.top_p < 1.0:
        masses = np.cumsum(weights)
        mass = params.top_p * (float(masses[num_kept - 1]) if total is None else total)
        num_kept = min(num_kept, int(np.searchsorted(masses, mass, side="left")) + 1)
    return tokens[:num_kept], weights[:num_kept] / weights[:num_kept].sum()


def _draw_from_all(scaled: npt.NDArray[np.float64], point: float) -> int:
    """Two levels: find the block, then the token in it; one cumulative sum over all would cost five times as much."""
    padded = np.zeros((-(-len(scaled) // BLOCK), BLOCK))
    weights = padded.reshape(-1)[: len(scaled)]
    np.exp(scaled, out=weights)
    blocks = np.cumsum(padded.sum(axis=1))
    target = point * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    before = blocks[block - 1] if block else 0.0
    within = np.cumsum(padded[block])
    index = block * BLOCK + int(np.searchsorted(within, target - before, side="right"))
    # Rounding can point past the last token that has any weight.
    return index if index < len(weights) and weights[index] > 0 else int(np.flatnonzero(weights)[-1])


def _draw_filtered(scaled: npt.NDArray[np.float64], params: SamplingParams, point: float) -> int:
    """Filters keep the first of the tokens, most probable first, ties by token id; one of these is drawn.

    Shapes: scaled [tokens].
    """
    limit, total = min(params.top_k or len(scaled), len(scaled)), _total(scaled, params)
    tokens = _drawable(scaled, params, limit, total)
    values = scaled[tokens]
    weights = np.exp(values)
    ranking = rank(values, weights)
    num_kept = _num_kept(weights, params, limit)
    mass = ranking.mass_of_first(num_kept)
    if params.top_p < 1.0:
        mass = min(mass, ranking.at_mass(params.top_p * (mass if total is None else total), "left").mass)
    return int(tokens[ranking.at_mass(point * mass, "right").position])


def _total(scaled: npt.NDArray[np.float64], params: SamplingParams) -> float | None:
    """What top-p is a part of; None: of what the filters before it leave, or there is no top-p."""
    return float(np.exp(scaled).sum()) if params.top_p < 1.0 and params.top_k is None else None


def _drawable(
    scaled: npt.NDArray[np.float64], params: SamplingParams, limit: int, total: float | None
) -> npt.NDArray[np.int64]:
    """Tokens that surely include what the filters keep, in the order of their ids."""
    if params.min_p > 0.0:
        return np.flatnonzero(scaled >= math.log(params.min_p) - SLACK)
    return _candidates(scaled, limit, None if total is None else total * params.top_p)


def _num_kept(weights: npt.NDArray[np.float64], params: SamplingParams, limit: int) -> int:
    """How many of the drawable tokens top-k and min-p keep."""
    num_kept = min(limit, len(weights))
    return num_kept if params.min_p == 0.0 else min(num_kept, max(int((weights >= params.min_p).sum()), 1))


def _candidates(scaled: npt.NDArray[np.float64], limit: int, mass: float | None) -> npt.NDArray[np.int64]:
    """Tokens that surely include the `limit` largest, or those that make up `mass`; found without sorting all."""
    span = SPAN
    while True:  # ends: at an infinite span every token is in
        tokens = np.flatnonzero(scaled >= -span)
        is_enough = len(tokens) >= limit if mass is None else float(np.exp(scaled[tokens]).sum()) >= mass
        if is_enough or len(tokens) == len(scaled):
            return tokens
        span *= 2
