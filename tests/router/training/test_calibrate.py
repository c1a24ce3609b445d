"""Known temperatures are recovered, and thresholds stay within their bounds."""

import math

import numpy as np
import pytest

from router.tasks import GENERAL, TASKS
from router.training.calibrate import MAX_REJECTED, WANTED_RECALL, Calibration, calibrate, thresholds
from router.training.corpus import LABELS, Row
from router.training.fit import softmax
from router.training.measure import Floats


def row(label: str, source: str = "a") -> Row:
    return Row(text="x", label=label, lang="en", source=source)


def logits_for(subject: float, general: float = 0.0, column: int = 0) -> list[float]:
    values = [0.0] * len(TASKS)
    values[column], values[-1] = subject, general
    return values


def test_probabilities_by_hand() -> None:
    """Logits over 2: log 4 and nothing else; then log 4 more for `general`."""
    logits = np.array([[2 * math.log(4), 0.0, 0.0, 0.0, 0.0]])
    found = Calibration(temperature=2.0, general_bias=math.log(4), threshold=0.0)
    assert found.probabilities(logits)[0].tolist() == pytest.approx([4 / 11, 1 / 11, 1 / 11, 1 / 11, 4 / 11])
    assert logits.tolist() == [[2 * math.log(4), 0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("threshold", "bias", "is_rejected"),
    [(0.49, 0.0, False), (0.51, 0.0, True), (0.2, 1.0, False), (0.2, 1.5, True), (0.47, 0.5, True)],
)
def test_rejected_is_what_is_general_or_below_the_threshold(threshold: float, bias: float, is_rejected: bool) -> None:
    """The subject has 4/8, and `general` outweighs it from log 4 = 1.39 on."""
    found = Calibration(temperature=1.0, general_bias=bias, threshold=threshold)
    assert found.is_rejected(np.array([logits_for(math.log(4))])).tolist() == [is_rejected]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_of_synthetic_logits_is_found_again(temperature: float) -> None:
    rng = np.random.default_rng(0)
    true_logits = rng.normal(0.0, 2.0, (1500, len(TASKS)))
    shares = softmax(true_logits)
    labels = [LABELS[int(rng.choice(len(TASKS), p=share))] for share in shares]
    found = calibrate([row(label) for label in labels], true_logits * temperature)
    assert found.temperature == pytest.approx(temperature, rel=0.15)


def overlapping() -> tuple[list[Row], Floats]:
    """In-scope rows mostly sure, `other` rows mostly not, each with exceptions."""
    rng = np.random.default_rng(1)
    rows, logits = [], []
    for _ in range(300):
        column = int(rng.integers(4))
        rows.append(row(LABELS[column]))
        logits.append(logits_for(rng.normal(4.0, 1.5), rng.normal(0.0, 1.0), column))
    for _ in range(100):
        rows.append(row("other"))
        logits.append(logits_for(rng.normal(1.5, 1.5), rng.normal(1.0, 1.5), int(rng.integers(4))))
    return rows, np.array(logits)


def rates(found: Calibration, rows: list[Row], logits: Floats) -> tuple[float, float]:
    """Shares of in-scope rows rejected, and of `other` rows found."""
    rejected = found.is_rejected(logits)
    is_other = np.array([one.label == "other" for one in rows])
    return float(rejected[~is_other].mean()), float(rejected[is_other].mean())


def test_in_scope_rows_are_rejected_within_the_bound() -> None:
    rows, logits = overlapping()
    wrongly, rightly = rates(calibrate(rows, logits), rows, logits)
    assert wrongly <= MAX_REJECTED
    assert rightly > 0.5


def test_recall_out_of_reach_keeps_the_bound() -> None:
    """Half of the `other` rows look like math itself: only the other half can be found."""
    rows = [row("math") for _ in range(60)] + [row("other") for _ in range(40)]
    logits = np.array([logits_for(3.0)] * 60 + [logits_for(3.0)] * 20 + [logits_for(0.5)] * 20)
    assert rates(calibrate(rows, logits), rows, logits) == (0.0, 0.5)
    assert WANTED_RECALL > 0.5


def test_nothing_to_tell_apart_rejects_nothing() -> None:
    rows = [row("math") for _ in range(30)] + [row("other") for _ in range(5)]
    logits = np.array([logits_for(3.0)] * 35)
    assert rates(calibrate(rows, logits), rows, logits) == (0.0, 0.0)


def test_wanted_recall_is_not_overdone() -> None:
    """Four fifths of `other` rows are found at no cost; the rest would cost two of a hundred in-scope rows."""
    rows = [row("math") for _ in range(100)] + [row("other") for _ in range(50)]
    logits = np.array([logits_for(5.0)] * 98 + [logits_for(2.0)] * 2 + [logits_for(0.5)] * 40 + [logits_for(2.5)] * 10)
    assert rates(calibrate(rows, logits), rows, logits) == (0.0, 0.8)


def test_sources_count_by_the_root_of_their_size() -> None:
    """Of `other`, a source of 16 that can be told and one of 100 that cannot but by rejecting too many: together 4
    against 10, so what can be found falls short of the target whatever is done, and the bound holds."""
    rows = [row("math") for _ in range(50)] + [row("other", "told") for _ in range(16)]
    rows += [row("other", "like math") for _ in range(100)]
    logits = np.array([logits_for(4.0)] * 50 + [logits_for(0.0, 4.0)] * 16 + [logits_for(4.0)] * 100)
    found = calibrate(rows, logits)
    assert found.is_rejected(logits).tolist() == [False] * 50 + [True] * 16 + [False] * 100
    alike = calibrate([row(one.label) for one in rows], logits)
    assert found.temperature < alike.temperature


@pytest.mark.parametrize("label", ["math", "other"])
def test_rows_of_one_kind_alone_are_calibrated(label: str) -> None:
    found = calibrate([row(label)] * 3, np.array([logits_for(2.0)] * 3))
    assert math.isfinite(found.temperature)
    assert 0.0 < found.threshold < 1.0


def test_threshold_is_that_of_every_subject() -> None:
    found = thresholds(Calibration(temperature=1.0, general_bias=0.0, threshold=0.4))
    assert found == {"math": 0.4, "legal": 0.4, "fact": 0.4, "creative": 0.4}
    assert GENERAL not in found
