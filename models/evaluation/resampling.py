"""Intervals: of sums over resampled rows, and of a proportion."""

import math
import zlib

import numpy as np
import numpy.typing as npt

Double = npt.NDArray[np.float64]

NUM_RESAMPLES = 2000
LEVEL = 0.95
NORMAL_975 = 1.959964


def resampled_sums(columns: Double, dataset: str, seed: int) -> Double:
    """The sum of every column in every resample of the rows.

    Calls for the same dataset and number of rows draw the same rows, so that their results are resampled together.
    Shapes: columns [columns, rows], returns [columns, resamples].
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile interval), paired rows.
    """
    num_rows = columns.shape[1]
    generator = np.random.default_rng([seed, zlib.crc32(dataset.encode()), num_rows])
    counts = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), NUM_RESAMPLES)
    sums: Double = np.stack([counts @ column for column in columns])
    return sums


def resampled_ratios(numerators: Double, denominators: Double, dataset: str, seed: int) -> Double:
    """The ratio of sums in every resample of the rows.

    Where the denominators add up to 0 or less, the ratio is infinite, or 1 when both sums are equal.
    """
    above, below = resampled_sums(np.stack([numerators, denominators]), dataset, seed)
    equal = np.where(above == below, 1.0, np.inf)
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), equal)


def divided(numerator: float, denominator: float) -> float:
    """A finite ratio. Where the base has nothing it is 1 for a path that has as much, and 0 for one that has less."""
    if denominator > 0:
        return numerator / denominator
    return 1.0 if numerator >= denominator else 0.0


def interval(resampled: Double, score: float) -> tuple[float, float]:
    """The middle `LEVEL` of finite resamples, widened where the score itself lies outside."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return score, score
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return min(float(low), score), max(float(high), score)


def proportion_interval(share: float, num_rows: int) -> tuple[float, float]:
    """95 % interval of an accuracy over so many rows. Source: Wilson 1927, score interval."""
    z2 = NORMAL_975**2
    centre = share + z2 / (2 * num_rows)
    spread = NORMAL_975 * math.sqrt(share * (1 - share) / num_rows + z2 / (4 * num_rows**2))
    return (centre - spread) / (1 + z2 / num_rows), (centre + spread) / (1 + z2 / num_rows)
