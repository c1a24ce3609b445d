"""The most probable of many tokens without sorting them all: the range of logits is divided into parts, and only the
part that a question falls into is looked at more closely.
"""

from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

MAX_SORTED = 2048
"""Fewer tokens are sorted: that takes no longer than dividing them."""
NUM_PARTS = 1024
SPAN = 48.0
"""Nats below the largest logit that are divided at first; what lies below weighs nothing beside it."""
BLOCK = 128
"""Tokens of which the largest is found at once."""


class Found(NamedTuple):
    """A place in the ranking, and the weight of everything up to and including it."""

    position: int
    mass: float


class Likeliest(NamedTuple):
    """Tokens from the largest logit on, ties by position, and the logarithm of the sum of the exponentials of all
    logits."""

    token_ids: list[int]
    log_total: float


class Ranking(Protocol):
    """Tokens from the largest logit to the smallest, ties by position."""

    def at_mass(self, mass: float, side: Literal["left", "right"]) -> Found:
        """The first place at which the accumulated weight reaches `mass`, or with "right" exceeds it; else the last one
        that weighs anything."""
        ...

    def mass_of_first(self, count: int) -> float:
        """The weight of the first `count`, at least 1 and at most all."""
        ...


def rank(logits: Values, weights: Values, span: float = SPAN) -> Ranking:
    """`weights` grow with `logits`; none is negative, and the largest is not 0."""
    highest = float(logits.max())
    lowest = max(float(logits.min()), highest - span)
    if len(logits) <= MAX_SORTED or lowest == highest or np.isinf(lowest):
        return Sorted(logits, weights)
    return Divided(logits, weights, lowest, highest)


class Sorted:
    def __init__(self, logits: Values, weights: Values) -> None:
        self._order = np.argsort(-logits, kind="stable")
        self._masses = np.cumsum(weights[self._order])

    def at_mass(self, mass: float, side: Literal["left", "right"]) -> Found:
        index = _index_of(self._masses, mass, side)
        return Found(int(self._order[index]), float(self._masses[index]))

    def mass_of_first(self, count: int) -> float:
        return float(self._masses[count - 1])


class Divided:
    def __init__(self, logits: Values, weights: Values, lowest: float, highest: float) -> None:
        self._logits, self._weights = logits, weights
        # Below `lowest` everything is in the last part. Dividing first keeps the product finite.
        shares = np.minimum((highest - logits) / (highest - lowest), 1.0)
        self._parts = (shares * (NUM_PARTS - 1)).astype(np.int16)
        self._counts = np.cumsum(np.bincount(self._parts, minlength=NUM_PARTS))
        self._masses: Values = np.cumsum(np.bincount(self._parts, weights, NUM_PARTS))

    def at_mass(self, mass: float, side: Literal["left", "right"]) -> Found:
        index = _index_of(self._masses, mass, side)
        before = float(self._masses[index - 1]) if index else 0.0
        positions, part = self._part(index)
        found = part.at_mass(mass - before, side)
        return Found(int(positions[found.position]), before + found.mass)

    def mass_of_first(self, count: int) -> float:
        index = int(np.searchsorted(self._counts, count))
        if index == 0:
            return self._part(0)[1].mass_of_first(count)
        num_before, before = int(self._counts[index - 1]), float(self._masses[index - 1])
        return before + self._part(index)[1].mass_of_first(count - num_before)

    def _part(self, index: int) -> tuple[Positions, Ranking]:
        positions = np.flatnonzero(self._parts == index)
        # Divided by its whole range: each time at least its smallest and its largest part ways.
        return positions, rank(self._logits[positions], self._weights[positions], np.inf)


def _index_of(masses: Values, mass: float, side: Literal["left", "right"]) -> int:
    """Where accumulated weights reach `mass`; rounding can point past the last that weighs anything."""
    index = int(np.searchsorted(masses, mass, side=side))
    return index if index < len(masses) else int(np.searchsorted(masses, masses[-1]))


def likeliest(logits: npt.NDArray[np.float32], count: int) -> Likeliest:
    """The `count` largest of a row, and what log-probabilities are counted from. Shapes: logits [tokens]."""
    weights = logits.astype(np.float64)
    highest = weights.max()
    weights -= highest
    np.exp(weights, out=weights)
    found = _at_least_the(logits, count) if count else np.empty(0, np.int64)
    order = np.argsort(-logits[found], kind="stable")
    return Likeliest(found[order[:count]].tolist(), float(highest + np.log(weights.sum())))


def _at_least_the(logits: npt.NDArray[np.float32], count: int) -> Positions:
    """Positions that surely include the `count` largest: the largest of that many blocks are as large as the smallest
    of these."""
    num_blocks = len(logits) // BLOCK
    if num_blocks < count:
        return np.arange(len(logits))
    maxima = logits[: num_blocks * BLOCK].reshape(-1, BLOCK).max(axis=1)
    return np.flatnonzero(logits >= np.partition(maxima, -count)[-count])
