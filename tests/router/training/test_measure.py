"""Every figure on a case small enough to count by hand."""

from typing import Any

import numpy as np
import pytest

from router.tasks import GENERAL, TASKS, Task
from router.training.corpus import LABELS, Row
from router.training.measure import (
    Judged,
    calibration_error,
    confusion,
    coverage_accuracy,
    figures,
    macro,
    reliability,
    source_accuracy,
    subject_confidence,
    task_of,
)

Case = tuple[str, str, str, Task, list[float]]

CASES: list[Case] = [
    ("math", "en", "A", "math", [0.90, 0.04, 0.02, 0.02, 0.02]),
    ("math", "en", "A", "fact", [0.30, 0.05, 0.50, 0.05, 0.10]),
    ("math", "en", "B", "math", [0.70, 0.10, 0.10, 0.05, 0.05]),
    ("legal", "en", "C", "general", [0.05, 0.35, 0.10, 0.05, 0.45]),
    ("creative", "zh", "D", "creative", [0.00, 0.00, 0.00, 1.00, 0.00]),
    ("other", "zh", "E", "general", [0.30, 0.10, 0.10, 0.10, 0.40]),
    ("other", "en", "E", "math", [0.90, 0.02, 0.02, 0.02, 0.04]),
]
"""label, language, source, verdict, probabilities in the order of `TASKS`."""


def judged(cases: list[Case]) -> Judged:
    return Judged(
        rows=[Row(text="x", label=label, lang=lang, source=source) for label, lang, source, _, _ in cases],
        verdicts=[verdict for *_, verdict, _ in cases],
        probabilities=np.array([shares for *_, shares in cases], np.float64).reshape(-1, len(TASKS)),
    )


def chosen(**wanted: Any) -> Judged:
    places = {"label": 0, "lang": 1}
    return judged([case for case in CASES if all(case[places[name]] == value for name, value in wanted.items())])


def test_labels_and_tasks_stand_for_one_another() -> None:
    assert dict(zip(LABELS, map(task_of, LABELS), strict=True)) == {
        "math": "math",
        "legal": "legal",
        "fact": "fact",
        "creative": "creative",
        "other": GENERAL,
    }


def test_figures_by_hand() -> None:
    """macro_en: math has sources of 1/2 and 1, legal one of 0. The likeliest labels are right in rows 1, 3, 5 and 6;
    bins have .9 (two rows, one right), .5 (wrong), .7 (right), 1 (right), and .45 with .4 (one right)."""
    found = figures(judged(CASES))
    assert found == {
        "macro_en": pytest.approx((3 / 4 + 0) / 2),
        "macro_zh": 1.0,
        "micro": pytest.approx(4 / 7),
        "coverage90_accuracy": pytest.approx(4 / 5),
        "ece": pytest.approx((2 * (0.9 - 0.5) + 0.5 + 0.3 + 0.0 + 2 * (0.5 - 0.425)) / 7),
        "other_recall": 0.5,
        "in_scope_rejected": pytest.approx(1 / 5),
    }


def test_figures_without_rows_are_none() -> None:
    assert set(figures(judged([])).values()) == {None}


def test_figures_without_other_rows() -> None:
    found = figures(chosen(label="math"))
    assert found["other_recall"] is None
    assert found["macro_zh"] is None
    assert found["in_scope_rejected"] == 0.0
    assert found["micro"] == pytest.approx(2 / 3)


def test_figures_of_other_rows_alone() -> None:
    found = figures(chosen(label="other"))
    assert found["other_recall"] == found["micro"] == 0.5
    for name in ("macro_en", "macro_zh", "coverage90_accuracy", "in_scope_rejected"):
        assert found[name] is None
    assert found["ece"] == pytest.approx((0.6 + 0.9) / 2)


def test_accuracy_of_sources() -> None:
    assert source_accuracy(judged(CASES)) == {
        ("en", "legal", "C"): (0.0, 1),
        ("en", "math", "A"): (0.5, 2),
        ("en", "math", "B"): (1.0, 1),
        ("en", "other", "E"): (0.0, 1),
        ("zh", "creative", "D"): (1.0, 1),
        ("zh", "other", "E"): (1.0, 1),
    }


def test_macro_counts_sources_and_tasks_alike_whatever_their_size() -> None:
    right, wrong = CASES[0], CASES[1]
    other_source: Case = ("math", "en", "Z", "math", right[4])
    legal: Case = ("legal", "en", "C", "legal", right[4])
    cases = [wrong] * 9 + [right] + [other_source] + [legal] * 50
    assert macro(judged(cases), "en") == pytest.approx(((0.1 + 1) / 2 + 1) / 2)


def test_subject_confidence_leaves_general_aside() -> None:
    confidence, is_right = subject_confidence(judged(CASES))
    assert confidence.tolist() == [0.9, 0.5, 0.7, 0.35, 1.0]
    assert is_right.tolist() == [True, False, True, True, True]


@pytest.mark.parametrize(("coverage", "accuracy"), [(0.2, 1.0), (0.6, 1.0), (0.61, 3 / 4), (0.8, 3 / 4), (1.0, 4 / 5)])
def test_coverage_takes_the_most_confident(coverage: float, accuracy: float) -> None:
    """Right at 1.0, 0.9, 0.7 and 0.35, wrong at 0.5. A part of a row is a whole one."""
    assert coverage_accuracy(judged(CASES), coverage) == pytest.approx(accuracy)


def test_coverage_of_nothing_is_none() -> None:
    assert coverage_accuracy(judged([]), 0.9) is None


def test_reliability_has_fifteen_bins_of_equal_width() -> None:
    """0.4 and 0.45 share the bin from 6/15 to 7/15."""
    found = reliability(judged(CASES))
    sizes = [size for _, _, size in found]
    assert sizes == [2, 1, 1, 2, 1]
    assert [confidence for confidence, _, _ in found] == pytest.approx([0.425, 0.5, 0.7, 0.9, 1.0])
    assert [share for _, share, _ in found] == pytest.approx([0.5, 0.0, 1.0, 0.5, 1.0])


def test_calibration_error_is_zero_for_honest_probabilities() -> None:
    right: Case = ("math", "en", "A", "math", [0.75, 0.25, 0.0, 0.0, 0.0])
    wrong: Case = ("legal", "en", "A", "math", [0.75, 0.25, 0.0, 0.0, 0.0])
    assert calibration_error(judged([right, right, right, wrong])) == 0.0
    assert calibration_error(judged([wrong, wrong, wrong, wrong])) == 0.75


def test_calibration_error_without_rows_is_none() -> None:
    assert calibration_error(judged([])) is None
    assert reliability(judged([])) == []


def test_confusion_counts_truth_by_verdict() -> None:
    assert confusion(judged(CASES)).tolist() == [
        [2, 0, 1, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]
