"""What `fenhe router eval` prints and writes."""

import math
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.errors import ConfigError
from router.tasks import TASKS, Task
from router.training.corpus import Row
from router.training.evaluate import describe, judge, write_json, write_report
from router.training.measure import Judged
from tests.router.classifiers import word_classifier

FIGURES = [
    "macro_en",
    "macro_zh",
    "micro",
    "coverage90_accuracy",
    "ece",
    "other_recall",
    "in_scope_rejected",
    "p50_ms",
    "p99_ms",
]
ROWS = [
    Row(text="add it", label="math", lang="en", source="A <b>"),
    Row(text="add up", label="math", lang="en", source="A <b>"),
    Row(text="sue them", label="math", lang="en", source="C"),
    Row(text="sue us", label="legal", lang="en", source="C"),
    Row(text="book it", label="other", lang="en", source="D"),
]
WORDS: dict[str, tuple[Task, int]] = {"add": ("math", 100), "sue": ("legal", 100), "book": ("general", 100)}
CLASSIFIER = word_classifier(WORDS)


def test_rows_are_judged_one_by_one() -> None:
    judged, found = judge(CLASSIFIER, ROWS)
    assert judged.verdicts == ["math", "math", "legal", "legal", "general"]
    assert judged.probabilities[2].tolist() == list(CLASSIFIER.classify_text("sue them").probabilities.values())
    assert list(found) == FIGURES
    assert found["macro_en"] == pytest.approx((0.5 + 1) / 2)
    assert found["micro"] == pytest.approx(4 / 5)
    assert found["macro_zh"] is None
    assert found["other_recall"] == 1.0


def test_columns_of_probabilities_are_tasks_whatever_the_labels_order() -> None:
    labels = tuple(reversed(TASKS))
    bias = (0.0, 0.0, 0.0, 0.0, math.log(6))
    judged, _ = judge(word_classifier({}, labels=labels, bias=bias), ROWS[:1])
    assert judged.probabilities[0].tolist() == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.1])


def test_times_are_milliseconds_in_order() -> None:
    _, found = judge(CLASSIFIER, ROWS)
    p50_ms, p99_ms = found["p50_ms"], found["p99_ms"]
    assert p50_ms is not None
    assert p99_ms is not None
    assert 0.0 < p50_ms <= p99_ms


def test_json_has_figures_and_sources(tmp_path: Path) -> None:
    judged, found = judge(CLASSIFIER, ROWS)
    write_json(tmp_path / "out.json", judged, found)
    body = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    assert set(body) == {"figures", "sources"}
    assert body["figures"] == found
    assert list(body["figures"]) == FIGURES
    assert body["sources"] == {
        "en math A <b>": {"accuracy": 1.0, "rows": 2},
        "en math C": {"accuracy": 0.0, "rows": 1},
        "en legal C": {"accuracy": 1.0, "rows": 1},
        "en other D": {"accuracy": 1.0, "rows": 1},
    }


def test_description_has_every_figure_class_and_source() -> None:
    judged, found = judge(CLASSIFIER, ROWS)
    lines = describe(judged, found).splitlines()
    begun = [line.split()[0] for line in lines if line]
    assert begun[: len(FIGURES)] == FIGURES
    assert lines[2].split()[:2] == ["micro", "0.8000"]
    assert lines[1].split()[:2] == ["macro_zh", "-"]
    assert ["math", "2", "1", "0", "0", "0"] in [line.split() for line in lines]
    assert ["other", "0", "0", "0", "0", "1"] in [line.split() for line in lines]
    assert ["en", "math", "A", "<b>", "1.000", "2"] in [line.split() for line in lines]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[-1:]], ids=["all", "one in scope", "none in scope"])
def test_report_holds_three_plots(rows: list[Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    judged, found = judge(CLASSIFIER, rows)
    write_report(tmp_path / "report.html", judged, found, "On <these> rows")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == page.count("</svg>") == 3
    assert page.startswith("<!doctype html>")
    assert "On &lt;these&gt; rows" in page
    assert "<these>" not in page
    assert "<b>" not in page
    for title in ("Confusion", "Reliability", "Accuracy of the most confident"):
        assert f"<!-- {title} -->" in page


def test_report_is_the_same_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    judged, found = judge(CLASSIFIER, ROWS)
    for name in ("one.html", "two.html"):
        write_report(tmp_path / name, judged, found, "rows")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_report_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    judged = Judged(rows=ROWS[:1], verdicts=["math"], probabilities=np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]))
    with pytest.raises(ConfigError, match=r"pip install 'fenhe\[router\]'"):
        write_report(tmp_path / "report.html", judged, {}, "rows")
    assert not (tmp_path / "report.html").exists()
