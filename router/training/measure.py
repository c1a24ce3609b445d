"""The figures a classifier is judged by, each defined once.

macro_LANG           mean over the four tasks of the mean over sources of the share whose verdict is the label
micro                share of all rows whose verdict is right; for `other` rows, `general` is
coverage90_accuracy  of the in-scope rows, the 90 % with the likeliest subject: share where that subject is the label
ece                  expected calibration error over all rows: 15 bins of equal width of the likeliest label's
                     probability, mean distance to the share of right ones, weighted by rows (Guo et al. 2017)
other_recall         share of `other` rows that end in `general`
in_scope_rejected    share of in-scope rows (all but `other`) that end in `general`
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.tasks import GENERAL, SUBJECTS, TASKS, Task
from router.training.corpus import LABELS, Row

Floats = npt.NDArray[np.float64]

MEANINGS = {
    "macro_en": "English: mean over tasks of the mean over sources of the share with the right verdict",
    "macro_zh": "Chinese: the same",
    "micro": "share of all rows with the right verdict",
    "coverage90_accuracy": "of the 90 % of in-scope rows with the likeliest subject, the share where it is right",
    "ece": "expected calibration error, 15 bins",
    "other_recall": "share of rows labelled other that end in general",
    "in_scope_rejected": "share of in-scope rows (all but other) that end in general",
    "p50_ms": "median time of a decision",
    "p99_ms": "99th percentile",
}
"""The same, for the table that is printed."""

NUM_BINS = 15
COVERAGE = 0.9


def task_of(label: str) -> Task:
    """The right verdict for a label."""
    return TASKS[LABELS.index(label)]


@dataclass(slots=True, kw_only=True, frozen=True)
class Judged:
    """Rows and a classifier's verdicts on them. Shapes: probabilities [rows, tasks] in the order of `TASKS`."""

    rows: Sequence[Row]
    verdicts: Sequence[Task]
    probabilities: Floats

    @property
    def truths(self) -> list[Task]:
        return [task_of(row.label) for row in self.rows]

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        return np.array([verdict == truth for verdict, truth in zip(self.verdicts, self.truths, strict=True)], np.bool_)


Figures = dict[str, float | None]
"""None where there is no row of that kind."""


def figures(judged: Judged) -> Figures:
    """All figures but the times."""
    truths = np.array(judged.truths)
    rejected = np.array(judged.verdicts) == GENERAL
    in_scope = truths != GENERAL
    return {
        "macro_en": macro(judged, "en"),
        "macro_zh": macro(judged, "zh"),
        "micro": _mean(judged.hits),
        "coverage90_accuracy": coverage_accuracy(judged, COVERAGE),
        "ece": calibration_error(judged),
        "other_recall": _mean(rejected[~in_scope]),
        "in_scope_rejected": _mean(rejected[in_scope]),
    }


def source_accuracy(judged: Judged) -> dict[tuple[str, str, str], tuple[float, int]]:
    """Share of right verdicts, and rows, by (language, label, source)."""
    hits: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for row, hit in zip(judged.rows, judged.hits.tolist(), strict=True):
        hits[row.lang, row.label, row.source].append(hit)
    return {key: (sum(values) / len(values), len(values)) for key, values in sorted(hits.items())}


def macro(judged: Judged, lang: str) -> float | None:
    """Only over tasks that have rows; None without any."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for (source_lang, label, _), (accuracy, _) in source_accuracy(judged).items():
        if source_lang == lang and label in SUBJECTS:
            by_task[label].append(accuracy)
    return _mean(np.array([sum(values) / len(values) for values in by_task.values()]))


def subject_confidence(judged: Judged) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """For in-scope rows: probability of the likeliest subject, and whether it is the label."""
    truths = np.array(judged.truths)
    in_scope = truths != GENERAL
    columns = [TASKS.index(subject) for subject in SUBJECTS]
    subjects = judged.probabilities[in_scope][:, columns]
    best = np.array(SUBJECTS)[subjects.argmax(axis=1)]
    return subjects.max(axis=1), best == truths[in_scope]


def coverage_accuracy(judged: Judged, coverage: float) -> float | None:
    confidence, is_right = subject_confidence(judged)
    kept = np.argsort(-confidence, kind="stable")[: math.ceil(coverage * len(confidence))]
    return _mean(is_right[kept])


def reliability(judged: Judged) -> list[tuple[float, float, int]]:
    """Mean confidence, share of right ones and rows of every bin that has rows."""
    confidence = judged.probabilities.max(axis=1)
    likeliest = np.array(TASKS)[judged.probabilities.argmax(axis=1)]
    is_right = likeliest == np.array(judged.truths)
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        (float(confidence[bins == number].mean()), float(is_right[bins == number].mean()), int((bins == number).sum()))
        for number in range(NUM_BINS)
        if (bins == number).any()
    ]


def calibration_error(judged: Judged) -> float | None:
    bins = reliability(judged)
    total = sum(size for _, _, size in bins)
    if not total:
        return None
    return sum(abs(confidence - share) * size for confidence, share, size in bins) / total


def confusion(judged: Judged) -> npt.NDArray[np.int64]:
    """Shapes: [truth, verdict], rows counted, both in the order of `TASKS`."""
    counts = np.zeros((len(TASKS), len(TASKS)), np.int64)
    for truth, verdict in zip(judged.truths, judged.verdicts, strict=True):
        counts[TASKS.index(truth), TASKS.index(verdict)] += 1
    return counts


def _mean(values: npt.NDArray[np.generic]) -> float | None:
    return float(values.astype(np.float64).mean()) if len(values) else None
