"""Whether a run diverges, judged by smoothed losses, which are kept in its progress."""

from collections.abc import Mapping

from models.distill.loss.objective import SOFT_LOSSES
from models.distill.run.progress import Progress

SMOOTHING = 0.98
SETTLED_STEPS = 200
"""Divergence is judged from here on: losses jump about in the first steps."""


def begin_phase(progress: Progress, phase: str) -> None:
    """Forget the losses of another stage or precision: they say nothing about this one's."""
    if phase != progress.phase:
        progress.phase, progress.phase_step = phase, progress.step
        progress.smoothed.clear()
        progress.best.clear()


def diverges(progress: Progress, name: str, values: tuple[float, float], factor: float) -> bool:
    """Take in a step's loss of an exit, and whether it is now `factor` times its best.

    `values` are the loss with and without the square of the temperature, and both have to have grown: a rising
    temperature makes the one grow, a falling one the other.
    """
    before = progress.smoothed.get(name, values)
    smoothed = progress.smoothed[name] = (_smooth(before[0], values[0]), _smooth(before[1], values[1]))
    if progress.step - progress.phase_step < SETTLED_STEPS:
        return False
    best = progress.best.get(name, smoothed)
    best = progress.best[name] = (min(best[0], smoothed[0]), min(best[1], smoothed[1]))
    return smoothed[0] > factor * best[0] and smoothed[1] > factor * best[1]


def untempered(found: Mapping[str, float], weights: Mapping[str, float], temperature: float) -> float:
    """An exit's loss by its configured weights, without the square of the temperature.

    `found` are the sums of its terms over a step, with the number of `passes` that they are from.
    """
    terms = {name: found[name] / found["passes"] for name in weights if name in found}
    return sum(
        weights[name] * value / (temperature**2 if name in SOFT_LOSSES else 1.0) for name, value in terms.items()
    )


def _smooth(before: float, now: float) -> float:
    return SMOOTHING * before + (1 - SMOOTHING) * now
