"""Draws a token from one row of logits: temperature, filters, and a number that depends on seed and position alone.

So the same seed gives the same text whatever else runs.
"""

import math

import numpy as np
import numpy.typing as npt

from engines.ranking import rank
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


def draw(logits: Row, params: SamplingParams, point: float) -> int:
    """The token at `point` of the cumulative distribution after temperature, min-p, top-k and top-p, in that order.

    Shapes: logits [tokens].
    """
    # Float64 and a shift by the largest: a temperature near zero must not overflow.
    scaled = (logits.astype(np.float64) - logits.max()) / params.temperature
    if params.top_k is None and params.top_p >= 1.0 and params.min_p == 0.0:
        return _draw_from_all(np.exp(scaled), point)
    return _draw_filtered(scaled, params, point)


def _draw_from_all(weights: npt.NDArray[np.float64], point: float) -> int:
    """Two levels: find the block, then the token in it; one cumulative sum over all would cost five times as much."""
    padded = np.pad(weights, (0, -len(weights) % BLOCK)).reshape(-1, BLOCK)
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
    limit = min(params.top_k or len(scaled), len(scaled))
    total = float(np.exp(scaled).sum()) if params.top_p < 1.0 and params.top_k is None else None
    if params.min_p > 0.0:
        tokens = np.flatnonzero(scaled >= math.log(params.min_p) - SLACK)
    else:
        tokens = _candidates(scaled, limit, None if total is None else total * params.top_p)
    values = scaled[tokens]
    weights = np.exp(values)
    ranking = rank(values, weights)
    num_kept = min(limit, len(tokens))
    if params.min_p > 0.0:
        num_kept = min(num_kept, max(int((weights >= params.min_p).sum()), 1))
    mass = ranking.mass_of_first(num_kept)
    if params.top_p < 1.0:
        mass = min(mass, ranking.at_mass(params.top_p * (mass if total is None else total), "left").mass)
    return int(tokens[ranking.at_mass(point * mass, "right").position])


def _candidates(scaled: npt.NDArray[np.float64], limit: int, mass: float | None) -> npt.NDArray[np.int64]:
    """Tokens that surely include the `limit` largest, or those that make up `mass`; found without sorting all."""
    span = SPAN
    while True:  # ends: at an infinite span every token is in
        tokens = np.flatnonzero(scaled >= -span)
        is_enough = len(tokens) >= limit if mass is None else float(np.exp(scaled[tokens]).sum()) >= mass
        if is_enough or len(tokens) == len(scaled):
            return tokens
        span *= 2
