"""The page: whole, self-contained, and with everything it was given."""

import html
import json
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from models.errors import ConfigError
from models.evaluation.describe import describe
from models.evaluation.plots import Axis
from models.evaluation.report import Pictures, page_of, read_steps
from models.evaluation.table import Calibration, RequestCompute
from tests.models.evaluation.test_table import evaluation, judged, with_heads

VOID = {"meta", "circle", "path", "polyline"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order; `open` holds the tags not closed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_fetches_nothing() -> None:
    page = page_of(evaluation(), Pictures())
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "knowledge" in parser.texts
    for outside in ("http://", "https://", "src=", "<script", "@import"):
        assert outside not in page
    assert "prefers-color-scheme:dark" in page


def test_names_are_escaped() -> None:
    page = page_of(msgspec.structs.replace(evaluation(), student="<b>&"), Pictures())
    assert "<b>&:" not in page
    assert "&lt;b&gt;&amp;" in page


def test_training_and_layers_are_shown_when_given(tmp_path: Path) -> None:
    steps, layers = tmp_path / "steps.jsonl", tmp_path / "layers.svg"
    lines = [{"step": n, "loss": 3.0 - n, "exit": name, "lr": 0.1} for n in range(3) for name in ("first", "second")]
    steps.write_text("".join(json.dumps(line) + "\n" for line in lines))
    layers.write_text('<?xml version="1.0"?><svg><text>angular distance</text></svg>')
    pictures = Pictures.read(steps=steps, layers=layers)
    assert pictures.curves["second"] == [(0.0, 3.0), (1.0, 2.0), (2.0, 1.0)]
    page = page_of(evaluation(), pictures)
    assert "<svg><text>angular distance</text></svg>" in page
    assert "<?xml" not in page
    assert page.count('class="curve') == 2
    assert "Training" not in page_of(evaluation(), Pictures())


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match=f"{file}:1"):
        read_steps(file)
    with pytest.raises(ConfigError, match="not an SVG"):
        Pictures.read(layers=file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Pictures.read(steps=tmp_path / "missing")


def test_axes_have_round_ticks() -> None:
    assert Axis(low=0.33, high=1.04, title="").ticks() == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert Axis(low=-1.0, high=52.0, title="").ticks() == pytest.approx([0, 10, 20, 30, 40, 50])


def test_the_table_names_points_and_picks() -> None:
    text = describe(evaluation())
    assert "0.900 [0.800, 1.000]" in text
    assert "edge" in text


def test_table_and_page_show_figures_verdicts_and_the_calibration() -> None:
    before = with_heads()
    request = RequestCompute(num_prompt_tokens=70, num_answer_tokens=140, compute_share=0.444)
    points = tuple(msgspec.structs.replace(point, request_compute={"math": request}) for point in before.points)
    calibration = Calibration(
        path="full",
        precision="gguf-native",
        reference_precision="fp32",
        compute_share=1.0,
        figures={"math": judged(0.25)},
    )
    changed = msgspec.structs.replace(
        before, points=points, calibration=calibration, mean_default_compute=0.831, full_path="full"
    )
    text = describe(changed)
    for words in (
        "request: share of one of 70 prompt and 140 answer tokens",
        "the full path at gguf-native over that at fp32",
        "an answer token takes 83.1% of the full path's compute",
    ):
        assert words in text
        assert words in html.unescape(page_of(changed, Pictures()))
    lines = [line.split() for line in text.splitlines() if "failed" in line]
    mark = "(calibration)"
    figures = ["1.200", "1.100", "-", "-", "-", "-", "0.970", "-", "-"]
    assert lines == [
        ["knowledge", "exact", "fp32", "failed", "passed", "passed", "40.0%", "44.4%", *figures, "0.300", "0.800"],
        ["knowledge", "cheap", "fp32", "failed", "passed", "passed", "40.0%", "44.4%", *figures, "0.300", "0.800"],
        [
            "full",
            "exact",
            "gguf-native",
            "failed",
            "passed",
            "passed",
            "100.0%",
            "100.0%",
            *figures,
            "0.250",
            "0.800",
            mark,
        ],
    ]
    parser = Balance()
    parser.feed(page_of(changed, Pictures()))
    assert "0.900 to 1.000 (9)" in parser.texts
    assert parser.texts.count("calibration") == 1


def test_table_and_page_say_what_counts_and_why() -> None:
    before = evaluation()
    point = before.points[0]
    why = "the full path's accuracy 0.300 is not clearly above 0.250"
    measures = (
        msgspec.structs.replace(point.measures[0], is_counted=False, reason="short answers are likely by their form"),
        msgspec.structs.replace(
            point.measures[0],
            name="a_choice",
            kind="choice",
            full_value=0.3,
            chance=0.25,
            full_low=0.277,
            full_high=0.324,
            is_counted=False,
            reason=why,
        ),
        msgspec.structs.replace(
            point.measures[0],
            name="a_information",
            kind="information",
            chance=0.0,
            full_low=1.6,
            full_high=2.0,
            reason=why,
        ),
    )
    kept = msgspec.structs.replace(point.retention["math"], measures=("a_information",), reason=f"a_information: {why}")
    unknown = point.tasks | {"legal": point.tasks["math"]}
    full = msgspec.structs.replace(point, path="full", measures=measures, retention={"math": kept}, tasks=unknown)
    changed = msgspec.structs.replace(before, points=(point, full))
    text = describe(changed)
    assert "0.300 right [0.277, 0.324], chance 0.250 (5 rows); does not count: " + why in text
    assert "1.8000 nats per token come from the question [1.600, 2.000] (5 rows); counts: " + why in text
    assert f"math         by a_information: {why}" in text
    assert "legal        unknown: no measure of it counts" in text
    parser = Balance()
    parser.feed(page_of(changed, Pictures()))
    assert f"by a_information: {why}" in parser.texts
    assert parser.texts.count("short answers are likely by their form") == 1
