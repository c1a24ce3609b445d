"""Learning the weights: softmax regression on hashed n-grams by Adagrad, with features dropped out.

Plain numpy, one text at a time: no thread and no BLAS decides about a rounding, so the same texts give the same bits.
Source: Adagrad, Duchi et al. 2011; dropout as regularisation, Wager et al. 2013 (arXiv 1307.1493).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.classifier.features import Features, Ids

Array = npt.NDArray[np.float32]


@dataclass(slots=True, kw_only=True, frozen=True)
class FitConfig:
    """`opening_weight`: see `bag_of`. `smoothing` is the share of a row's mass spread over the other classes."""

    num_bits: int = 19
    opening_weight: float = 0.5
    num_epochs: int = 2
    rate: float = 0.2
    bias_rate: float = 0.01
    drop_share: float = 0.4
    smoothing: float = 0.05
    seed: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class Bag:
    """Features of a text, each once per part, and the value each has. Shapes: ids [features]; values [features]."""

    ids: Ids
    values: Array


def bag_of(features: Features, opening_weight: float) -> Bag:
    """A feature's value is how often it occurs over the root of all that occur, in its part of the text."""
    whole_ids, whole_values = _count(features.whole)
    opening_ids, opening_values = _count(features.opening)
    values = np.concatenate((whole_values, opening_values * np.float32(opening_weight)))
    return Bag(ids=np.concatenate((whole_ids, opening_ids)), values=values)


def _count(ids: Ids) -> tuple[Ids, Array]:
    distinct, counts = np.unique(ids, return_counts=True)
    return distinct, (counts / len(ids) ** 0.5).astype(np.float32)


@dataclass(slots=True, kw_only=True, frozen=True)
class LinearModel:
    """Shapes: weights [2 ** num_bits, classes]; bias [classes]."""

    weights: Array
    bias: Array

    def logits(self, bag: Bag) -> Array:
        """Shapes: [classes]."""
        return _logits(self.weights[bag.ids], bag.values, self.bias)


def _logits(rows: Array, values: Array, bias: Array) -> Array:
    total: Array = (rows * values[:, None]).sum(axis=0) + bias
    return total


def fit(
    bags: Sequence[Bag], labels: npt.NDArray[np.int64], weights: Array, num_classes: int, config: FitConfig
) -> LinearModel:
    """Train on texts given by their features, class numbers and weights.

    A feature is dropped with all its occurrences; what is left is scaled so that the logits keep their spread.
    """
    rng = np.random.default_rng(config.seed)
    table = np.zeros((1 << config.num_bits, num_classes), np.float32)
    squares = np.full_like(table, 1e-3)
    bias = np.zeros(num_classes, np.float32)
    targets = _targets(num_classes, config.smoothing)
    scale = np.float32((1.0 - config.drop_share) ** -0.5)
    for row in _order(len(bags), config.num_epochs, rng):
        bag = bags[row]
        kept = rng.random(len(bag.ids), np.float32) >= config.drop_share
        ids, values = bag.ids[kept], bag.values[kept] * scale
        rows = table[ids]
        shares = softmax(_logits(rows, values, bias).astype(np.float64)).astype(np.float32)
        error = (shares - targets[labels[row]]) * weights[row]
        bias -= np.float32(config.bias_rate) * error
        steps = values[:, None] * error
        sums = squares[ids] + steps * steps
        squares[ids] = sums
        table[ids] = rows - np.float32(config.rate) * steps / np.sqrt(sums)
    return LinearModel(weights=table, bias=bias)


def softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the last axis. In double precision: processors differ in the last bit of `exp`, which `fit` rounds away."""
    exp = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: npt.NDArray[np.float64] = exp / exp.sum(axis=-1, keepdims=True)
    return shares


def _targets(num_classes: int, smoothing: float) -> Array:
    spread = np.full((num_classes, num_classes), smoothing / (num_classes - 1), np.float32)
    np.fill_diagonal(spread, 1.0 - smoothing)
    return spread


def _order(num_rows: int, num_epochs: int, rng: np.random.Generator) -> Iterator[int]:
    for _ in range(num_epochs):
        yield from rng.permutation(num_rows).tolist()
