"""From raw logits to calibrated probabilities and thresholds, learned on rows of sources that training did not see.

Source: temperature scaling, Guo et al. 2017 (arXiv 1706.04599); here with a bias for `general` added.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.tasks import GENERAL, SUBJECTS, TASKS, Task
from router.training.corpus import Row, group_of
from router.training.fit import softmax
from router.training.measure import Floats, task_of

MAX_REJECTED = 0.035
"""Of in-scope rows, the share that may end in `general` on calibration rows; in use the bound is 4 %."""

WANTED_RECALL = 0.76
"""Of `other` rows, the share that is to end in `general` on calibration rows; in use the bound is 75 %."""

_TEMPERATURES = np.geomspace(0.05, 20.0, 121)
_BIASES = np.linspace(-3.0, 2.0, 51)
_THRESHOLDS = np.linspace(0.35, 0.7, 36)
"""Thresholds below a fifth would have no effect: the likeliest of five tasks is always above it."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Calibration:
    """Logits are divided by `temperature`, then `general` gets `general_bias`; below `threshold` it is the verdict."""

    temperature: float
    general_bias: float
    threshold: float

    def probabilities(self, logits: Floats) -> Floats:
        """Shapes: [rows, tasks] both."""
        values = logits / self.temperature
        values[:, TASKS.index(GENERAL)] += self.general_bias
        return softmax(values)

    def is_rejected(self, logits: Floats) -> npt.NDArray[np.bool_]:
        """Whether a row ends in `general`."""
        return self.refuses(self.probabilities(logits))

    def refuses(self, probabilities: Floats) -> npt.NDArray[np.bool_]:
        """As `is_rejected`, for probabilities."""
        refused: npt.NDArray[np.bool_] = (probabilities.argmax(axis=1) == TASKS.index(GENERAL)) | (
            probabilities.max(axis=1) < self.threshold
        )
        return refused


def calibrate(rows: Sequence[Row], logits: Floats) -> Calibration:
    """The likeliest temperature; then the bias and threshold that reject fewest in-scope rows at `WANTED_RECALL`, or,
    where that rejects too many, that find most `other` rows at `MAX_REJECTED`.

    For the temperature every source counts by the root of its size. Shapes: logits [rows, tasks].
    """
    truths = np.array([TASKS.index(task_of(row.label)) for row in rows])
    weights = _source_weights(rows)
    is_other = truths == TASKS.index(GENERAL)
    temperature = min(_TEMPERATURES, key=lambda value: _nats(logits / value, truths, weights))
    trials = []
    for bias in _BIASES:
        probabilities = Calibration(temperature=temperature, general_bias=float(bias), threshold=0.0).probabilities(
            logits
        )
        for threshold in _THRESHOLDS:
            tried = Calibration(temperature=float(temperature), general_bias=float(bias), threshold=float(threshold))
            rejected = tried.refuses(probabilities)
            recall = float(rejected[is_other].mean()) if is_other.any() else 1.0
            num_rejected = int(rejected[~is_other].sum())
            trials.append((tried, num_rejected / max(int((~is_other).sum()), 1), recall))
    return _choose(trials)


def _choose(trials: Sequence[tuple[Calibration, float, float]]) -> Calibration:
    """From (calibration, share of in-scope rows rejected, share of `other` rows found)."""
    wanted = [trial for trial in trials if trial[1] <= MAX_REJECTED and trial[2] >= WANTED_RECALL]
    if wanted:
        return min(wanted, key=lambda trial: (trial[1], -trial[2]))[0]
    allowed = [trial for trial in trials if trial[1] <= MAX_REJECTED] or list(trials)
    return max(allowed, key=lambda trial: trial[2])[0]


def _source_weights(rows: Sequence[Row]) -> Floats:
    sizes = Counter(map(group_of, rows))
    return np.array([1.0 / sizes[group_of(row)] ** 0.5 for row in rows])


def _nats(values: Floats, truths: npt.NDArray[np.int64], weights: Floats) -> float:
    chosen = softmax(values)[np.arange(len(truths)), truths]
    return float(np.average(-np.log(np.maximum(chosen, 1e-12)), weights=weights))


def thresholds(calibration: Calibration) -> dict[Task, float]:
    return dict.fromkeys(SUBJECTS, calibration.threshold)
