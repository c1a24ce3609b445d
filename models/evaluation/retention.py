"""What a path keeps of every task: the mean of the measures that count."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from models.evaluation.measures import Sampled, measures_of
from models.evaluation.resampling import interval
from models.evaluation.scores import RowScore
from models.evaluation.table import Measure, TaskRetention


def retention_of(sampled: Sequence[Sampled]) -> dict[str, TaskRetention]:
    """What is kept of every task: the mean of its measures that count.

    Each measure counts 0 to 1, so that a gain at one does not hide a loss at another. A task without such a measure is
    left out: nothing is known of it.
    """
    by_task: dict[str, list[Sampled]] = {}
    for one in sampled:
        if one.measure.is_counted:
            by_task.setdefault(one.measure.task, []).append(one)
    return {task: _mean_retention(task, held) for task, held in by_task.items()}


def _mean_retention(task: str, held: Sequence[Sampled]) -> TaskRetention:
    score = math.fsum(min(max(one.measure.ratio, 0.0), 1.0) for one in held) / len(held)
    resampled = np.mean([np.clip(one.ratios, 0.0, 1.0) for one in held], axis=0)
    low, high = interval(resampled, score)
    names = tuple(one.measure.name for one in held)
    reason = "; ".join(f"{one.measure.name}: {one.measure.reason}" for one in held)
    return TaskRetention(task=task, score=score, low=low, high=high, measures=names, reason=reason)


def task_retentions(
    path: Sequence[RowScore], base: Sequence[RowScore], seed: int
) -> tuple[tuple[Measure, ...], Mapping[str, TaskRetention]]:
    """All measures of a path against a base, and what it keeps of every task."""
    sampled = measures_of(path, base, seed)
    return tuple(one.measure for one in sampled), retention_of(sampled)
