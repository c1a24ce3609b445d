"""Which precision runs: what was asked for, or the fastest faithful one that fits and can run here."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.config import EngineConfig
from engines.onnx import precision_choice
from engines.onnx.plan import PrecisionPlan
from engines.onnx.precision_choice import choose_plan
from models.errors import ConfigError
from models.student.folder import Student
from models.student.manifest import Manifest, Variant
from models.student.speeds import Speeds

SIZES = {"fp32": 1000, "int8": 300, "w8a8": 250, "w8a8-native": 250}
LIBRARY = Path("operators.so")


def with_variants(student: Student, sizes: dict[str, int]) -> Student:
    variants = tuple(
        Variant(name=name, stages={}, head="", embedding="", weight_bytes=size) for name, size in sizes.items()
    )
    manifest: Manifest = msgspec.structs.replace(student.manifest, variants=variants)
    return Student(folder=student.folder, manifest=manifest, tokenizer=student.tokenizer)


def speed(one: float, four: float, many: float, prefill: float = 0.001) -> Speeds:
    return Speeds(decode_step_s={1: one, 4: four, 32: many}, prefill_token_s=prefill)


MEASURED = {
    "fp32": speed(0.010, 0.012, 0.080),
    "int8": speed(0.005, 0.007, 0.060),
    "w8a8": speed(0.006, 0.006, 0.030),
    "w8a8-native": speed(0.005, 0.005, 0.020),
}


@pytest.fixture
def choose(fake_student: Student, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`choose(sizes, library, **settings)` with made-up speeds."""

    def measured(student: Student, names: list[str], num_threads: int, library: Path | None) -> dict[str, Speeds]:
        return {name: MEASURED[name] for name in names}

    monkeypatch.setattr(precision_choice, "speeds_of", measured)

    def make(sizes: dict[str, int] = SIZES, library: Path | None = LIBRARY, **settings: Any) -> PrecisionPlan:
        return choose_plan(with_variants(fake_student, sizes), EngineConfig(**settings), 2, library)

    return make


def test_plan_takes_what_was_asked_for(choose: Any) -> None:
    assert choose(precision="int8") == PrecisionPlan(many="int8")


def test_plan_auto_takes_the_fastest_that_can_run_here(choose: Any) -> None:
    assert choose() == PrecisionPlan(many="w8a8-native")
    assert choose(library=None) == PrecisionPlan(many="w8a8")


def test_plan_auto_stays_within_the_budget(choose: Any) -> None:
    assert choose({**SIZES, "w8a8": 600, "w8a8-native": 600}, weights_bytes=500).many == "int8"


def test_precision_that_was_removed_is_refused_with_what_to_take(choose: Any) -> None:
    """Also where a student of an earlier version has graphs of it, which are never chosen."""
    for sizes in (SIZES, {**SIZES, "int4": 150}):
        with pytest.raises(ConfigError, match=r"precision: int4 was removed: .*gguf-native.*there are fp32, int8"):
            choose(sizes, precision="int4")
    assert choose({"int4": 150, "w8a8": 250}).many == "w8a8"


def test_plan_auto_that_finds_nothing_says_what_would_help(choose: Any) -> None:
    with pytest.raises(ConfigError, match=r"weights_bytes=100: w8a8 takes 250; allow as much with --weights-bytes 250"):
        choose(weights_bytes=100)
    with pytest.raises(ConfigError, match=r"w8a8-native need fenhe's own operators.*install a C compiler"):
        choose({"w8a8-native": 250}, library=None)


def test_plan_auto_never_depends_on_the_number_of_rows(choose: Any) -> None:
    chosen = choose()
    assert chosen.few == ()
    assert {chosen.decode(rows) for rows in range(1, 40)} == {chosen.prefill}


def test_plan_adaptive_takes_the_fastest_of_equal_kv_for_few_rows(choose: Any) -> None:
    chosen = choose(library=None, precision="adaptive")
    assert chosen == PrecisionPlan(many="w8a8", few=((1, "int8"),))
    assert [chosen.decode(rows) for rows in (1, 2, 32)] == ["int8", "w8a8", "w8a8"]
    assert chosen.describe() == "int8 up to 1 rows, then w8a8"
    # The native one keeps its KV in fp16, and nothing else does.
    assert choose(precision="adaptive") == PrecisionPlan(many="w8a8-native")


def test_plan_adaptive_pays_for_all_its_variants(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    faster = {"int8": speed(0.001, 0.005, 0.060), "fp32": speed(0.002, 0.002, 0.080)}
    for name, found in faster.items():
        monkeypatch.setitem(MEASURED, name, found)
    roomy = choose(library=None, precision="adaptive", weights_bytes=1600)
    assert roomy.few == ((1, "int8"), (4, "fp32"))
    tight = choose(library=None, precision="adaptive", weights_bytes=1549)
    assert tight.few == ((1, "int8"), (4, "int8"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int3"}, "no precision 'int3', only fp32, int8"),
        ({"precision": "w8a8-native", "library": None}, "install a C compiler"),
        ({"weights_bytes": 10}, "within weights_bytes=10"),
        ({"sizes": {"w8a8-native": 9}, "library": None}, "can run here"),
    ],
)
def test_plan_refuses_what_cannot_run(choose: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(**options)


def test_plan_of_a_single_candidate_measures_nothing(fake_student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_choice, "speeds_of", lambda *_: pytest.fail("measured"))
    student = with_variants(fake_student, {"int8": 1})
    assert choose_plan(student, EngineConfig(), 2, None).many == "int8"


def test_plan_and_its_speeds_are_one_readable_line(choose: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        choose({"w8a8": 250, "int8": 300})
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "precision chosen plan='w8a8' w8a8=\"1 row 6 ms, 4 rows 6 ms, 32 rows 30 ms, prompt token 1 ms\" "
        'int8="1 row 5 ms, 4 rows 7 ms, 32 rows 60 ms, prompt token 1 ms"'
    )


EXACT_S = {1: 0.0010, 8: 0.0014, 32: 0.0030}
STEP_4_S, STEP_32_S = (MEASURED["w8a8-native"].decode_step_s[rows] for rows in (4, 32))


@pytest.fixture
def choose_head(fake_student: Student, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`choose_head(cheap_s, **settings)`: the plan for a native student with a cheap head that takes these times."""
    asked: list[list[str]] = []

    def make(cheap_s: dict[int, float], **settings: Any) -> PrecisionPlan:
        def measured(student: Student, names: Any, num_threads: int, library: Path | None) -> dict[str, Speeds]:
            asked.append(list(names))
            timed = msgspec.structs.replace(MEASURED["w8a8-native"], exact_head_s=EXACT_S, cheap_head_s=cheap_s)
            return {name: timed if name == "w8a8-native" else MEASURED[name] for name in names}

        monkeypatch.setattr(precision_choice, "speeds_of", measured)
        student = with_variants(fake_student, {"w8a8-native": 250, "int8": 150})
        variants = tuple(
            msgspec.structs.replace(variant, cheap_head="c.onnx" if variant.name == "w8a8-native" else None)
            for variant in student.manifest.variants
        )
        manifest = msgspec.structs.replace(student.manifest, variants=variants)
        student = Student(folder=student.folder, manifest=manifest, tokenizer=student.tokenizer)
        return choose_plan(student, EngineConfig(**settings), 2, LIBRARY)

    return make


@pytest.mark.parametrize(
    ("cheap_s", "head"),
    [
        ({1: 0.0005, 8: 0.0008, 32: 0.0028}, "cheap"),
        ({1: 0.0005, 8: 0.0008, 32: 0.0030 + 0.03 * STEP_32_S}, "cheap"),
        ({1: 0.0005, 8: 0.0008, 32: 0.0031 + 0.03 * STEP_32_S}, "exact"),
        ({1: 0.0010, 8: 0.0008, 32: 0.0028}, "exact"),
        ({1: 0.0005, 8: 0.0014 + 0.02 * STEP_4_S, 32: 0.0028}, "cheap"),
        ({1: 0.0005, 8: 0.0014 + 0.04 * STEP_4_S, 32: 0.0028}, "exact"),
    ],
    ids=["wins", "loses-3-percent", "loses-more", "no-gain-at-1", "as-fast-at-8", "loses-at-8"],
)
def test_the_cheap_head_stays_on_where_it_pays(choose_head: Any, cheap_s: dict[int, float], head: str) -> None:
    assert choose_head(cheap_s).head == head


def test_the_head_is_what_the_settings_say(choose_head: Any) -> None:
    slow = dict.fromkeys(EXACT_S, 1.0)
    assert choose_head(slow, head="cheap").head == "cheap"
    assert choose_head({1: 0.0005, 8: 0.0008, 32: 0.0028}, head="exact").head == "exact"


def test_a_precision_without_a_cheap_head_takes_the_exact_one(choose_head: Any) -> None:
    assert choose_head({}, precision="int8").head == "exact"
    with pytest.raises(ConfigError, match=r"head cheap: student .* has none at precision 'int8'.*--head"):
        choose_head({}, precision="int8", head="cheap")


def test_int8_kv_is_chosen_where_asked_for_and_never_else(choose: Any) -> None:
    for precision in ("auto", "adaptive", "w8a8-native"):
        plan = choose(precision=precision, kv_precision="int8")
        assert plan == PrecisionPlan(many="w8a8-native", int8_kv=True)
        assert (plan.kv_precision, choose(precision=precision).kv_precision) == ("int8", "fp16")
    assert choose(library=None).kv_precision == "fp32"


def test_int8_kv_takes_the_precisions_that_have_it_though_others_are_faster(
    choose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEASURED, "fp32", speed(0.001, 0.001, 0.001))
    assert choose().many == "fp32"
    assert choose(kv_precision="int8").many == "w8a8-native"


@pytest.mark.parametrize("precision", ["fp32", "int8", "w8a8"])
def test_int8_kv_of_a_stock_precision_is_refused_with_what_to_take(choose: Any, precision: str) -> None:
    says = (
        rf"kv_precision int8: precision '{precision}' keeps its KV in fp32; take precision w8a8-native or gguf-native"
    )
    with pytest.raises(ConfigError, match=says):
        choose(precision=precision, kv_precision="int8")


@pytest.mark.parametrize("precision", ["auto", "adaptive", "w8a8-native"])
def test_int8_kv_without_operators_is_refused_with_what_to_install(choose: Any, precision: str) -> None:
    with pytest.raises(ConfigError, match=r"needs fenhe's own operators.* install a C compiler"):
        choose(library=None, precision=precision, kv_precision="int8")


def test_int8_kv_of_a_student_without_native_graphs_is_refused_with_what_to_build(choose: Any) -> None:
    with pytest.raises(ConfigError, match=r"kv_precision int8: no precision of student .* only fp32.*fenhe build"):
        choose({"fp32": 1000}, kv_precision="int8")
