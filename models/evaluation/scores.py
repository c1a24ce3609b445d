"""From log-probabilities to measures: likelihood and choice of every dataset, and what a path keeps of them.

A measure compares a path with a base on the same rows. `ratio` is 1.0 where they are equal and less where the path is
worse: for a likelihood the base's nats per token over the path's, for a choice the path's accuracy over the base's.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.evaluation.table import LIKELIHOOD, Measure, TaskRetention

Double = npt.NDArray[np.float64]

NUM_RESAMPLES = 2000
LEVEL = 0.95
NORMAL_975 = 1.959964


@dataclass(slots=True, kw_only=True, frozen=True)
class RowScore:
    """What a path made of one passage, summed over the tokens of its answer.

    `choice_nats` has the mean nats per token of every choice, the right one first; empty where there is no choice.
    Units: nats, kl in nats.
    """

    dataset: str
    task: str
    num_tokens: int
    nats: float
    kl: float
    num_agreed: int
    choice_nats: tuple[float, ...] = ()

    @property
    def is_right(self) -> bool:
        """The right choice is likelier than every other one; a tie is no answer."""
        return self.choice_nats[0] < min(self.choice_nats[1:])


def nats_per_token(rows: Iterable[RowScore]) -> float:
    held = list(rows)
    return sum(row.nats for row in held) / sum(row.num_tokens for row in held)


def perplexity_ratio(path: Sequence[RowScore], base: Sequence[RowScore]) -> float:
    """Perplexity of the reference answers on a path over that on the base; more than 1 is worse."""
    return math.exp(nats_per_token(path) - nats_per_token(base))


def agreement(rows: Sequence[RowScore]) -> float:
    """Share of answer positions at which the path's likeliest token is the reference's."""
    return sum(row.num_agreed for row in rows) / sum(row.num_tokens for row in rows)


def mean_kl(rows: Sequence[RowScore]) -> float:
    """Mean over answer positions of KL(reference || path). Units: nats."""
    return sum(row.kl for row in rows) / sum(row.num_tokens for row in rows)


@dataclass(slots=True, kw_only=True, frozen=True)
class Sampled:
    """A measure and its ratio in every resample."""

    measure: Measure
    ratios: Double


def measures_of(path: Sequence[RowScore], base: Sequence[RowScore], seed: int) -> list[Sampled]:
    """Every measure of every (task, dataset); `path` and `base` score the same passages in the same order."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(path):
        groups.setdefault((row.task, row.dataset), []).append(index)
    found: list[Sampled] = []
    for (task, dataset), indices in groups.items():
        rows, bases = [path[index] for index in indices], [base[index] for index in indices]
        found.append(_likelihood(f"{dataset}_{LIKELIHOOD}", task, rows, bases, seed))
        pairs = [(row, other) for row, other in zip(rows, bases, strict=True) if row.choice_nats]
        if pairs:
            found.append(_choice(f"{dataset}_choice", task, pairs, seed))
    return found


def _likelihood(name: str, task: str, rows: Sequence[RowScore], bases: Sequence[RowScore], seed: int) -> Sampled:
    tokens = np.array([row.num_tokens for row in rows], np.float64)
    nats = np.array([[row.nats, other.nats] for row, other in zip(rows, bases, strict=True)], np.float64)
    ratios = _ratios(nats[:, 1], nats[:, 0], name, seed)
    value, base_value = (float(total / tokens.sum()) for total in nats.sum(axis=0))
    ratio = _divided(base_value, value)
    low, high = interval(ratios, ratio)
    measure = Measure(
        name=name,
        task=task,
        kind="likelihood",
        value=value,
        full_value=base_value,
        ratio=ratio,
        low=low,
        high=high,
        n=len(rows),
        num_tokens=int(tokens.sum()),
    )
    return Sampled(measure=measure, ratios=ratios)


def _choice(name: str, task: str, pairs: Sequence[tuple[RowScore, RowScore]], seed: int) -> Sampled:
    right = np.array([[row.is_right, other.is_right] for row, other in pairs], np.float64)
    ratios = _ratios(right[:, 0], right[:, 1], name, seed)
    value, base_value = (float(mean) for mean in right.mean(axis=0))
    chance = sum(1 / len(row.choice_nats) for row, _ in pairs) / len(pairs)
    full_low, full_high = proportion_interval(int(right[:, 1].sum()), len(pairs))
    ratio = _divided(value, base_value)
    low, high = interval(ratios, ratio)
    measure = Measure(
        name=name,
        task=task,
        kind="choice",
        value=value,
        full_value=base_value,
        ratio=ratio,
        low=low,
        high=high,
        n=len(pairs),
        chance=chance,
        full_low=full_low,
        full_high=full_high,
        is_above_chance=full_low > chance,
    )
    return Sampled(measure=measure, ratios=ratios)


def retention_of(sampled: Sequence[Sampled]) -> dict[str, TaskRetention]:
    """What is kept of every task: the mean of its measures at which the full path is above chance.

    Each measure counts 1.0 at most, so that luck at one pays for no loss at another. A task without such a measure
    is left out: nothing is known of it.
    """
    by_task: dict[str, list[Sampled]] = {}
    for one in sampled:
        if one.measure.is_above_chance:
            by_task.setdefault(one.measure.task, []).append(one)
    return {task: _mean_retention(task, held) for task, held in by_task.items()}


def _mean_retention(task: str, held: Sequence[Sampled]) -> TaskRetention:
    score = math.fsum(min(one.measure.ratio, 1.0) for one in held) / len(held)
    resampled = np.mean([np.minimum(one.ratios, 1.0) for one in held], axis=0)
    low, high = interval(resampled, score)
    return TaskRetention(task=task, score=score, low=low, high=high, measures=tuple(one.measure.name for one in held))


def _ratios(numerators: Double, denominators: Double, name: str, seed: int) -> Double:
    """The ratio of sums in every resample of the rows.

    Measures on the same dataset draw the same rows, so that their mean is resampled together.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile interval), paired rows.
    """
    dataset = name.rpartition("_")[0]
    generator = np.random.default_rng([seed, zlib.crc32(dataset.encode()), len(numerators)])
    counts = generator.multinomial(len(numerators), np.full(len(numerators), 1 / len(numerators)), NUM_RESAMPLES)
    above, below = counts @ numerators, counts @ denominators
    equal = np.where(above == below, 1.0, np.inf)
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), equal)


def _divided(numerator: float, denominator: float) -> float:
    """A finite ratio: a base that is never right is kept wholly by a path that is never right either."""
    if denominator > 0:
        return numerator / denominator
    return 1.0


def interval(resampled: Double, score: float) -> tuple[float, float]:
    """The middle `LEVEL` of finite resamples, widened where the score itself lies outside."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return score, score
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return min(float(low), score), max(float(high), score)


def proportion_interval(num_right: int, num_rows: int) -> tuple[float, float]:
    """95 % interval of an accuracy. Source: Wilson 1927, score interval."""
    share, z2 = num_right / num_rows, NORMAL_975**2
    centre = share + z2 / (2 * num_rows)
    spread = NORMAL_975 * math.sqrt(share * (1 - share) / num_rows + z2 / (4 * num_rows**2))
    return (centre - spread) / (1 + z2 / num_rows), (centre + spread) / (1 + z2 / num_rows)


def task_retentions(
    path: Sequence[RowScore], base: Sequence[RowScore], seed: int
) -> tuple[tuple[Measure, ...], Mapping[str, TaskRetention]]:
    """All measures of a path against a base, and what it keeps of every task."""
    sampled = measures_of(path, base, seed)
    return tuple(one.measure for one in sampled), retention_of(sampled)
