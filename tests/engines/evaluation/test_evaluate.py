"""A whole evaluation of tiny students: the full path keeps everything, a damaged exit does not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.evaluation.choices import EvalConfig
from engines.evaluation.evaluate import evaluate
from engines.evaluation.speeds import decode_speeds
from models.building.build import build_student
from models.errors import ConfigError
from models.evaluation.rows import Row
from models.evaluation.table import Point
from models.evaluation.texts import Pair, PlainText, Prompt, Texts
from models.student.folder import Student

ROWS = [
    Row(dataset="texts", task="legal", prompt="the fox", answer="jumps over the lazy dog 0123 and jumps over it again"),
    Row(dataset="texts", task="legal", prompt="a student", answer="answers every request that a lazy fox has sent"),
    Row(dataset="trivia", task="fact", prompt="who?", answer="fox", right="fox", wrong=("dog", "other")),
]


@pytest.fixture
def tiny(tiny_student: Callable[..., Any]) -> Any:
    return tiny_student("llama", ("int8", "fp32"))


def texts(rows: Sequence[Row]) -> Texts:
    return Texts(rows=tuple(rows))


def config(**settings: Any) -> EvalConfig:
    return EvalConfig(num_threads=1, num_speed_rounds=1, **settings)


def test_the_full_path_keeps_everything_and_shallow_ones_cost_less(tiny: Any) -> None:
    found = evaluate(tiny.student, texts(ROWS), config())
    points = {(point.path, point.precision): point for point in found.points}
    assert found.reference_precision == "fp32"
    assert set(points) == {(path, name) for path in ("knowledge", "reasoning", "full") for name in ("fp32", "int8")}
    full, shallow = points["full", "fp32"], points["knowledge", "fp32"]
    assert (full.agreement, full.kl, full.perplexity_ratio, full.compute_share) == (1.0, 0.0, 1.0, 1.0)
    assert {task: (kept.score, kept.low, kept.high) for task, kept in full.retention.items()} == {
        "legal": (1.0, 1.0, 1.0)  # one row of trivia is too few to say
    }
    assert [measure.ratio for measure in full.measures] == [1.0] * len(full.measures)
    assert shallow.layers == 1 < full.layers == 4
    assert shallow.compute_share < 1
    assert shallow.bytes < full.bytes
    assert shallow.agreement < 1 < shallow.perplexity_ratio
    assert shallow.kl > 0
    assert set(full.decode_tokens_per_s) == {1, 32}


def test_a_precision_is_compared_with_itself_for_routing_and_with_the_reference_besides(tiny: Any) -> None:
    found = evaluate(tiny.student, texts(ROWS), config(precisions=("int8",), paths=("full",)))
    reference, rounded = found.points
    assert (reference.precision, rounded.precision) == ("fp32", "int8")
    assert rounded.retention["legal"].score == 1.0
    assert rounded.reference_retention["legal"].score != 1.0
    assert rounded.kl > 0


def test_the_full_path_is_measured_though_not_asked_for(tiny: Any) -> None:
    found = evaluate(tiny.student, texts(ROWS), config(precisions=("fp32",), paths=("knowledge",)))
    assert [point.path for point in found.points] == ["knowledge", "full"]


def test_a_damaged_exit_shows(tiny_source: Any, tmp_path: Path) -> None:
    """A student of which the last layer does nothing, so that the path without it is the full path, and then one
    whose shallow exit's norm is inverted. (What random students find likely is not for sure less likely then.)"""
    whole, damaged = (_shallow(tiny_source, tmp_path, is_damaged) for is_damaged in (False, True))
    assert whole.retention["legal"].score == pytest.approx(1.0, abs=1e-5)
    assert whole.agreement == 1.0
    assert whole.kl == pytest.approx(0.0, abs=1e-5)
    assert damaged.agreement < 0.5
    assert damaged.kl > 0.1


def _shallow(tiny_source: Any, tmp_path: Path, is_damaged: bool) -> Point:
    import onnx
    from onnx import numpy_helper
    from safetensors.numpy import load_file, save_file

    from models.building.build import build_student
    from models.student.folder import Student

    source = tiny_source("llama")
    weights = load_file(source / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.3.{name}.weight"][:] = 0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    folder = tmp_path / f"student-{is_damaged}"
    build_student(source, folder, modules="first:3,last:1", precisions=("fp32",))
    student = Student.open(folder, verify=False)
    if is_damaged:
        graph_file = student.graph("fp32", "first_exit")
        model = onnx.load(str(graph_file))
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.size == 64:
                tensor.CopyFrom(numpy_helper.from_array(-array, tensor.name))
        graph_file.write_bytes(model.SerializeToString())
    rows = [row for row in ROWS if row.task == "legal"]
    return evaluate(student, texts(rows), config()).points[0]


def test_what_is_not_there_is_named(tiny: Any) -> None:
    for settings, words in (
        ({"paths": ("deep",)}, "deep"),
        ({"precisions": ("w8a8",)}, "w8a8"),
        ({"reference": "w8a8"}, "w8a8"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluate(tiny.student, texts(ROWS), config(**settings))
    long = Row(dataset="d", task="legal", prompt="word " * 200, answer="x")
    with pytest.raises(ConfigError, match="too long"):
        evaluate(tiny.student, texts([long]), config())


def test_short_answers_are_asked_behind_other_questions(tiny: Any) -> None:
    """The full path has all of its own information, whatever that of a random student is worth."""
    facts = [
        Row(dataset="trivia", task="fact", prompt=f"what is {n}?", answer=str(7 * n), right=str(7 * n), wrong=("x",))
        for n in range(1, 25)
    ]
    found = evaluate(tiny.student, texts([*ROWS[:2], *facts]), config(precisions=("fp32",)))
    by_path = {point.path: {measure.name: measure for measure in point.measures} for point in found.points}
    assert set(by_path["full"]) == {"texts_likelihood", "trivia_likelihood", "trivia_choice", "trivia_information"}
    full, shallow = by_path["full"]["trivia_information"], by_path["knowledge"]["trivia_information"]
    assert (full.n, full.value) == (24, full.full_value)
    assert shallow.full_value == full.value != shallow.value
    assert not by_path["full"]["trivia_likelihood"].is_counted


def test_rows_that_do_not_fit_are_counted(tiny: Any) -> None:
    long = Row(dataset="d", task="legal", prompt="word " * 200, answer="x")
    found = evaluate(tiny.student, texts([*ROWS, long]), config(precisions=("fp32",), paths=("full",)))
    assert found.num_rows == {"texts": 2, "trivia": 1}
    assert found.num_skipped == 1


FIGURES = {"perplexity_ratio_own", "perplexity_ratio_human", "perplexity_ratio_plain", "kl", "agreement", "blimp_kept"}
ANSWERS = {"rescored_nats_ratio", "repetition_ratio"}


def every_text() -> Texts:
    plain = [PlainText(task=task, text=f"the lazy fox of {task} jumps over {n}") for task in KINDS for n in range(4)]
    pairs = [Pair(set="s", good=f"{n} foxes jump", bad=f"{n} foxes jumps") for n in range(12)]
    prompts = [Prompt(task="legal", prompt=f"what did the fox do {n}?") for n in range(4)]
    return Texts(rows=tuple(ROWS), plain=tuple(plain), pairs=tuple(pairs), prompts=tuple(prompts))


KINDS = ("legal", "general")


def test_every_kind_of_text_gives_its_figures_and_the_full_path_keeps_them_exactly(tiny: Any) -> None:
    found = evaluate(tiny.student, every_text(), config(precisions=("fp32",), num_answer_prompts=2))
    points = {point.path: point for point in found.points}
    assert set(points) == {"knowledge", "reasoning", "full"}
    full, shallow = points["full"].figures["legal"], points["knowledge"].figures["legal"]
    assert set(full.rows) == set(full.intervals) == FIGURES | ANSWERS
    for name in FIGURES | ANSWERS:
        value = 0.0 if name == "kl" else 1.0
        assert (getattr(full, name), full.intervals[name]) == (value, (value, value)), name
        low, high = shallow.intervals[name]
        assert low <= getattr(shallow, name) <= high
    assert shallow.kl is not None
    assert shallow.kl > 0
    assert shallow.rows["blimp_kept"] == 12
    assert shallow.rows["perplexity_ratio_plain"] == shallow.rows["perplexity_ratio_human"] == 4
    assert shallow.rows["rescored_nats_ratio"] <= 2 < shallow.rows["perplexity_ratio_own"] <= 4
    request = points["knowledge"].request_compute["legal"]
    assert request.compute_share < points["full"].request_compute["legal"].compute_share == 1.0
    assert request.num_prompt_tokens > 5
    assert "general" not in points["full"].figures


@pytest.fixture
def four_bits(tiny_source: Any, tiny_gguf: Any, tmp_path: Path) -> Student:
    """The model of `tiny` in blocks of four bits."""
    build_student(tiny_gguf(tiny_source("llama"), quantisation="Q4_0"), tmp_path / "four", precisions=("gguf-native",))
    return Student.open(tmp_path / "four")


def test_full_path_in_four_bits_calibrates_on_some_texts(
    tiny: Any, four_bits: Student, native_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.evaluation.evaluate.CALIBRATION_TEXTS", 3)
    monkeypatch.setattr("engines.evaluation.evaluate.CALIBRATION_PAIRS", 4)
    texts = every_text()
    settings = config(precisions=("fp32",), paths=("full",), native_folder=native_library.parent)
    found = evaluate(tiny.student, texts, settings, calibration=four_bits)
    assert {point.precision for point in found.points} == {"fp32"}
    calibration = found.calibration
    assert calibration is not None
    assert (calibration.path, calibration.precision) == ("full", "gguf-native")
    assert calibration.reference_precision == "fp32"
    figures = calibration.figures["legal"]
    assert figures.rows["blimp_kept"] == 4
    assert figures.rows["perplexity_ratio_plain"] == figures.rows["perplexity_ratio_human"] == 3
    assert figures.perplexity_ratio_plain != 1.0
    assert figures.kl is not None
    assert figures.kl > 0
    assert figures.rescored_nats_ratio is None


def test_calibration_that_cannot_be_is_refused_before_anything_is_measured(
    tiny: Any, four_bits: Student, native_library: Path, tiny_source: Any, tiny_gguf: Any, tmp_path: Path
) -> None:
    can_run = config(native_folder=native_library.parent)
    with pytest.raises(ConfigError, match=r"--calibration: student .* has no gguf-native; build one from a 4-bit GGUF"):
        evaluate(tiny.student, texts(ROWS), can_run, calibration=tiny.student)
    with pytest.raises(ConfigError, match="gguf-native cannot run here: install a C compiler"):
        evaluate(tiny.student, texts(ROWS), config(), calibration=four_bits)
    architecture = msgspec.structs.replace(four_bits.manifest.architecture, vocab_size=9)
    other = replace(four_bits, manifest=msgspec.structs.replace(four_bits.manifest, architecture=architecture))
    with pytest.raises(ConfigError, match=r"has 9 tokens.*320.*take a plain build of the same model"):
        evaluate(tiny.student, texts(ROWS), can_run, calibration=other)


def test_a_student_alone_is_not_calibrated(tiny: Any) -> None:
    assert evaluate(tiny.student, texts(ROWS), config(precisions=("fp32",))).calibration is None


@pytest.mark.parametrize("settings", [{"precisions": ("int4",)}, {"reference": "int4"}])
def test_precision_that_was_removed_is_refused_with_what_to_take(tiny: Any, settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"int4 was removed.*gguf-native"):
        evaluate(tiny.student, texts(ROWS), config(**settings))


def test_speeds_take_the_paths_in_turns() -> None:
    class Counting:
        def __init__(self) -> None:
            self.steps: list[tuple[str | None, int]] = []

        def forward(self, step: Any) -> None:
            self.steps.append((step.decode[0].path, len(step.decode)))

    runner: Any = Counting()
    speeds = decode_speeds(runner, ["a", "b"], position=5, num_rounds=2)
    assert runner.steps[:4] == [("a", 1), ("b", 1), ("a", 1), ("b", 1)]
    assert runner.steps[-2:] == [("a", 32), ("b", 32)]
    assert all(speeds[path][rows] > 0 for path in ("a", "b") for rows in (1, 32))
