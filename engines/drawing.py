"""Draws a token from one row of logits: temperature, filters, and a number that depends on seed and position alone.

So the same seed gives the same text whatever else runs.
"""

import math

import numpy as np
import numpy.typing as npt

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
    tokens, weights = _filtered(scaled, params)
    cumulated = np.cumsum(weights)
    index = int(np.searchsorted(cumulated, point * cumulated[-1], side="right"))
    return int(tokens[min(index, len(tokens) - 1)])


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


def _filtered(
    scaled: npt.NDArray[np.float64], params: SamplingParams
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that pass the filters and their weights, most probable first, ties by token id.

    Shapes: scaled [tokens], returns [kept] twice.
    """
    limit = min(params.top_k or len(scaled), len(scaled))
    total = float(np.exp(scaled).sum()) if params.top_p < 1.0 and params.top_k is None else None
    if params.min_p > 0.0:
        tokens = np.flatnonzero(scaled >= math.log(params.min_p) - SLACK)
    else:
        tokens = _candidates(scaled, limit, None if total is None else total * params.top_p)
    order = np.lexsort((tokens, -scaled[tokens]))
    tokens = tokens[order][:limit]
    weights = np.exp(scaled[tokens])
    if params.min_p > 0.0:
        kept = int((weights >= params.min_p).sum())
        tokens, weights = tokens[: max(kept, 1)], weights[: max(kept, 1)]
    if params.top_p < 1.0:
        mass = np.cumsum(weights)
        kept = int(np.searchsorted(mass, params.top_p * (mass[-1] if total is None else total))) + 1
        tokens, weights = tokens[:kept], weights[:kept]
    return tokens, weights


def _candidates(scaled: npt.NDArray[np.float64], limit: int, mass: float | None) -> npt.NDArray[np.int64]:
    """Tokens that surely include the `limit` largest, or those that make up `mass`; found without sorting all."""
    span = SPAN
    while True:  # ends: at an infinite span every token is in
        tokens = np.flatnonzero(scaled >= -span)
        is_enough = len(tokens) >= limit if mass is None else float(np.exp(scaled[tokens]).sum()) >= mass
        if is_enough or len(tokens) == len(scaled):
            return tokens
        span *= 2
