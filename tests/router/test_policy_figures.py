"""Which path and head a request takes on a student with figures per task, and why, as tables.

Paths a, b, c and full have 2, 4, 6 and 8 layers. With the cheap head a answers at 0.26 of the full path's compute with
the exact head, b at 0.50, c at 0.73 and full at 0.96; with the exact head they cost 0.30, 0.53, 0.77 and 1.
"""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.compute import compute_share
from models.evaluation.verdicts import gate
from models.student.manifest import HeadKind, Manifest, Width
from router.decision import Quality, Reason, RouteDecision, StudentState
from router.policy import PolicyConfig, decide_together
from router.tasks import TASKS, Task
from tests.router.students import BUSY, HEADS, IDLE, NAMES, RULES, measured_manifest, route, student, student_manifest

FAST, BALANCED, HIGH, FULL = Quality


def cheap(manifest: Manifest, **fields: Any) -> StudentState:
    return student(manifest=manifest, head="cheap", **fields)


def place(decision: RouteDecision) -> tuple[str, HeadKind, Reason]:
    return decision.path, decision.head, decision.reason


CHOICES: list[tuple[str, str | None, str, HeadKind, Reason]] = [
    # the task's own path, with the cheap head where that passes
    ("a:fair/fair full:fair", "a", "a", "cheap", Reason.TASK),
    ("a:poor/fair full:fair", "a", "a", "exact", Reason.TASK),
    ("a:-/fair full:fair", "a", "a", "exact", Reason.TASK),
    # the next that passes, by cost
    ("a:poor/poor b:fair/fair full:fair", "a", "b", "cheap", Reason.MIN_QUALITY),
    ("a:poor/poor b:poor/fair c:fair full:fair", "a", "b", "exact", Reason.MIN_QUALITY),
    ("a:poor/poor b:poor/poor c:poor/poor full:fair", "a", "full", "cheap", Reason.MIN_QUALITY),
    # never below what the task asks for
    ("a:fair/fair b:fair/fair full:fair", "b", "b", "cheap", Reason.TASK),
    ("a:fair/fair b:fair/fair full:fair", "full", "full", "cheap", Reason.TASK),
    ("a:fair/fair full:fair", None, "full", "cheap", Reason.NO_TASK_PATH),
    # the last resort
    ("a:poor/poor full:poor", "a", "full", "exact", Reason.MIN_QUALITY),
    ("a:fair/fair full:poor", "full", "full", "exact", Reason.TASK),
    ("a:fair/fair", "full", "full", "exact", Reason.TASK),
    ("a:fair/fair full:poor", None, "full", "exact", Reason.NO_TASK_PATH),
]


@pytest.mark.parametrize(("figures", "task_path", "path", "head", "reason"), CHOICES)
def test_path_and_head_are_the_cheapest_that_pass_the_gate(
    figures: str, task_path: str | None, path: str, head: HeadKind, reason: Reason
) -> None:
    manifest = measured_manifest(figures, tasks={} if task_path is None else {"math": task_path})
    assert place(route([cheap(manifest)])) == (path, head, reason)


QUALITIES: list[tuple[Quality, int, str, tuple[str, HeadKind, Reason]]] = [
    # busy: the cheapest that passes what the request's quality asks for, whatever task and length ask for
    (BALANCED, IDLE, "a:fair b:good c:good full:good", ("c", "cheap", Reason.TASK)),
    (BALANCED, BUSY, "a:fair b:good c:good full:good", ("a", "cheap", Reason.LOAD)),
    (BALANCED, BUSY, "a:poor b:poor c:good full:good", ("c", "cheap", Reason.TASK)),
    (HIGH, IDLE, "a:good b:good c:fair full:good", ("full", "cheap", Reason.MIN_QUALITY)),
    (HIGH, IDLE, "a:good b:good c:fair full:fair", ("full", "exact", Reason.MIN_QUALITY)),
    (HIGH, BUSY, "a:fair b:good c:fair full:good", ("b", "cheap", Reason.LOAD)),
    (FULL, BUSY, "a:good b:good c:good full:good", ("full", "exact", Reason.WISHED_QUALITY)),
]


@pytest.mark.parametrize(("quality", "load", "figures", "expected"), QUALITIES)
def test_path_under_quality_and_load(
    quality: Quality, load: int, figures: str, expected: tuple[str, HeadKind, Reason]
) -> None:
    manifest = measured_manifest(figures, tasks={"math": "c"})
    assert place(route([cheap(manifest, num_running=load)], quality=quality)) == expected


@pytest.mark.parametrize(
    ("load", "keeps", "figures", "expected"),
    [
        # 0.90 of the retention, whatever the verdicts, with the head that serves where it was measured
        (IDLE, (0.90, 0.9, 0.9), "a:poor b:poor full:good", ("a", "cheap", Reason.WISHED_QUALITY)),
        (IDLE, (0.89, 0.9, 0.9), "a:poor b:poor full:good", ("b", "cheap", Reason.WISHED_QUALITY)),
        (IDLE, (0.90, 0.9, 0.9), "a:-/poor full:good", ("a", "exact", Reason.WISHED_QUALITY)),
        (BUSY, (0.80, 0.9, 0.9), "a:poor b:poor full:good", ("a", "cheap", Reason.LOAD)),
        # never more than a balanced request would take
        (IDLE, (0.1, 0.1, 0.1), "a:fair c:fair full:good", ("c", "cheap", Reason.TASK)),
        (BUSY, (0.1, 0.1, 0.1), "a:fair c:fair full:good", ("a", "cheap", Reason.LOAD)),
        (IDLE, (), "a:poor c:poor full:poor", ("full", "cheap", Reason.MIN_QUALITY)),
    ],
)
def test_fast_keeps_the_older_levels(
    load: int, keeps: tuple[float, ...], figures: str, expected: tuple[str, HeadKind, Reason]
) -> None:
    manifest = measured_manifest(figures, tasks={"math": "c"}, keeps=keeps)
    assert place(route([cheap(manifest, num_running=load)], quality=FAST)) == expected


@pytest.mark.parametrize(
    ("rule", "figures", "keeps", "expected"),
    [
        ("gate", "a:fair/fair b:good", (0.0, 0.0), ("a", "cheap", Reason.TASK)),
        ("fidelity", "a:fair/fair b:good", (1.0, 1.0), ("b", "cheap", Reason.MIN_QUALITY)),
        ("retention", "a:fair/fair b:good", (0.94, 0.95), ("b", "cheap", Reason.MIN_QUALITY)),
        ("retention", "a:poor/poor b:good", (0.95, 0.95), ("a", "exact", Reason.TASK)),
    ],
)
def test_rule_says_what_balanced_requests_ask_for(
    rule: Any, figures: str, keeps: tuple[float, ...], expected: tuple[str, HeadKind, Reason]
) -> None:
    manifest = measured_manifest(figures, keeps=keeps)
    assert place(route([cheap(manifest)], config=PolicyConfig(rule=rule))) == expected


def test_gate_limits_of_the_settings_replace_those_of_the_tasks_they_name() -> None:
    """Fair figures have 1.14 on the full path's own words."""
    manifest = measured_manifest("a:fair b:good full:good")
    strict = PolicyConfig(max_own_perplexity={"math": 1.12})
    other = PolicyConfig(max_own_perplexity={"legal": 1.12}, min_information={"legal": 1.0})
    assert route([cheap(manifest)], config=strict).path == "b"
    assert route([cheap(manifest)], config=other).path == "a"
    assert (other.limits.max_own_perplexity["math"], other.limits.min_information["fact"]) == (1.15, 0.85)


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"max_own_perplexity": {"math": 0.99}}, ["max_own_perplexity.math must be at least 1, not 0.99"]),
        ({"max_own_perplexity": {"legal": float("nan")}}, ["max_own_perplexity.legal must be at least 1, not nan"]),
        ({"min_information": {"fact": 1.1}}, ["min_information.fact must be from 0 to 1, not 1.1"]),
        ({"max_own_perplexity": {"general": 1.0}, "min_information": {"fact": 0.0}}, []),
    ],
)
def test_policy_names_what_is_wrong_with_the_limits(values: dict[str, Any], problems: list[str]) -> None:
    assert [str(one) for one in PolicyConfig(**values).problems()] == problems


def test_floor_of_the_settings_holds_for_figures_too() -> None:
    manifest = measured_manifest("a:good b:good full:good", keeps=(0.97, 0.98))
    assert route([cheap(manifest)], config=PolicyConfig(min_retention={"math": 0.98})).path == "b"
    assert route([cheap(manifest)], config=PolicyConfig(min_retention={"math": 0.99})).path == "full"


@pytest.mark.parametrize(
    ("num_prompt_tokens", "expected"),
    [
        (128, ("a", "cheap", Reason.TASK)),
        (129, ("b", "cheap", Reason.PROMPT_LENGTH)),
        (513, ("c", "exact", Reason.PROMPT_LENGTH)),
    ],
)
def test_prompt_length_asks_for_a_deeper_path(num_prompt_tokens: int, expected: tuple[str, HeadKind, Reason]) -> None:
    manifest = measured_manifest("a:good b:good c:poor/good full:poor", rules=RULES)
    assert place(route([cheap(manifest)], num_prompt_tokens=num_prompt_tokens)) == expected


def test_exact_head_is_all_there_is_where_the_cheap_one_does_not_serve() -> None:
    manifest = measured_manifest("a:good/poor b:good/good full:good")
    assert place(route([student(manifest=manifest)])) == ("b", "exact", Reason.MIN_QUALITY)
    assert place(route([student(manifest=manifest)], quality=FAST))[1] == "exact"


@pytest.mark.parametrize(
    ("figures", "verdict", "quality", "head"),
    [
        ("full:fair", "general", BALANCED, "cheap"),
        ("full:fair", "general", FAST, "cheap"),
        ("full:fair", None, BALANCED, "cheap"),
        ("full:fair", "general", HIGH, "exact"),
        ("full:good", "general", HIGH, "cheap"),
        ("full:poor", "general", BALANCED, "exact"),
        ("full:poor", "general", FAST, "exact"),
        ("a:good", "general", BALANCED, "exact"),
        ("full:good", "general", FULL, "exact"),
    ],
)
def test_general_takes_the_full_path_and_its_cheap_head_where_that_passes(
    figures: str, verdict: Task | None, quality: Quality, head: HeadKind
) -> None:
    manifest = measured_manifest(figures, task="general", tasks={"general": "a"})
    found = route([cheap(manifest, num_running=BUSY)], verdict, quality=quality)
    assert (found.path, found.head) == ("full", head)


@pytest.mark.parametrize(("serving", "path"), [("cheap", "a"), ("exact", "a"), ("cheap", "full")])
def test_named_path_is_taken_with_the_head_that_serves(serving: HeadKind, path: str) -> None:
    manifest = measured_manifest("a:poor full:poor")
    found = route([student(manifest=manifest, head=serving)], path=path, language="de")
    assert place(found) == (path, serving, Reason.WISHED_PATH)


def test_named_path_has_the_exact_head_where_full_quality_is_asked_for() -> None:
    found = route([cheap(measured_manifest("full:good"))], path="full", quality=FULL)
    assert place(found) == ("full", "exact", Reason.WISHED_PATH)


@pytest.mark.parametrize(
    ("language", "measured", "preferences", "expected"),
    [
        ("de", "en", {}, ("full", "exact", Reason.LANGUAGE_UNMEASURED)),
        ("zh", "en", {"quality": FAST}, ("full", "exact", Reason.LANGUAGE_UNMEASURED)),
        ("zh", "en", {"quality": HIGH}, ("full", "exact", Reason.LANGUAGE_UNMEASURED)),
        ("de", "en", {"task": "math"}, ("full", "exact", Reason.LANGUAGE_UNMEASURED)),
        ("de", "en", {"task": "general"}, ("full", "exact", Reason.LANGUAGE_UNMEASURED)),
        ("de", "en", {"quality": FULL}, ("full", "exact", Reason.WISHED_QUALITY)),
        ("en", "en", {}, ("a", "cheap", Reason.TASK)),
        (None, "en", {}, ("a", "cheap", Reason.TASK)),
        ("de", "de", {}, ("a", "cheap", Reason.TASK)),
        ("en", "de", {}, ("full", "exact", Reason.LANGUAGE_UNMEASURED)),
        (None, "de", {}, ("a", "cheap", Reason.TASK)),
        # figures that name no language are for all
        ("de", "", {}, ("a", "cheap", Reason.TASK)),
        (None, "", {}, ("a", "cheap", Reason.TASK)),
    ],
)
def test_language_without_figures_takes_the_full_path(
    language: str | None, measured: str, preferences: dict[str, Any], expected: tuple[str, HeadKind, Reason]
) -> None:
    manifest = measured_manifest("a:good full:good", language=measured)
    found = route([cheap(manifest, num_running=BUSY)], language=language, **preferences)
    assert place(found) == expected
    assert found.language == language


WIDTH_CHOICES: list[tuple[str, str, str, Reason]] = [
    ("slim:good wide:good b:good full:good", "slim", "slim", Reason.TASK),
    ("slim:poor wide:good b:good full:good", "slim", "wide", Reason.MIN_QUALITY),
    ("slim:poor wide:poor c:good full:good", "slim", "c", Reason.MIN_QUALITY),
    ("slim:poor wide:poor c:poor full:good", "slim", "full", Reason.MIN_QUALITY),
    ("slim:good wide:good full:good", "wide", "wide", Reason.TASK),
    ("slim:good wide:good full:good", "c", "wide", Reason.MIN_QUALITY),
]


@pytest.mark.parametrize(("figures", "task_path", "path", "reason"), WIDTH_CHOICES)
def test_narrow_paths_stand_among_the_others_by_what_their_layers_compute(
    figures: str, task_path: str, path: str, reason: Reason
) -> None:
    """A layer costs 448, and 352 with four of its eight neurons, 304 with two, 280 with one; c has six whole ones."""
    manifest = measured_manifest(figures, tasks={"math": task_path})
    widths = (Width(name="four", neurons=(4,) * 8), Width(name="two", neurons=(2,) * 5 + (1,) * 3))
    narrow = [
        msgspec.structs.replace(manifest.full_path, name=name, width=width.name)
        for name, width in zip(("wide", "slim"), widths, strict=True)
    ]
    manifest = msgspec.structs.replace(manifest, widths=widths, paths=(*narrow, *manifest.paths))
    assert [one.name for one in manifest.paths_by_depth] == ["a", "b", "slim", "c", "wide", "full"]
    assert place(route([cheap(manifest)])) == (path, "cheap", reason)


def test_path_that_was_not_measured_in_the_language_is_not_relied_on() -> None:
    english, german = measured_manifest("a:good b:good"), measured_manifest("b:good", language="de")
    both = msgspec.structs.replace(english, figures=english.figures + german.figures)
    assert place(route([cheap(both)], language="en")) == ("a", "cheap", Reason.TASK)
    assert place(route([cheap(both)], language="de")) == ("b", "cheap", Reason.MIN_QUALITY)
    assert route([cheap(both)], language="fr").reason is Reason.LANGUAGE_UNMEASURED


def test_student_without_figures_goes_by_retention_with_the_exact_head_in_any_language() -> None:
    manifest = student_manifest(keeps=(0.95, 1.0, 1.0))
    for one in (cheap(manifest), cheap(measured_manifest("a:poor", variant="fp32", keeps=(0.95, 1.0, 1.0)))):
        assert place(route([one], language="de")) == ("a", "exact", Reason.TASK)
        assert place(route([one], quality=HIGH)) == ("full", "exact", Reason.MIN_QUALITY)


def test_fallbacks_have_heads_of_their_own() -> None:
    pool = [
        cheap(measured_manifest("a:good full:good"), name="x"),
        cheap(measured_manifest("a:poor/good full:good"), name="y"),
    ]
    found = route(pool)
    assert [(target.path, target.head) for target in found.targets] == [("a", "cheap"), ("a", "exact")]


def test_prompts_together_take_the_exact_head_if_one_of_them_needs_it() -> None:
    one = cheap(measured_manifest("a:good full:good"))
    easy, hard = route([one], language="en"), route([one], language="de")
    short = replace(hard, path="a")
    assert decide_together([easy, hard], [one]) == (1, hard)
    assert decide_together([easy, short], [one]) == (1, short)
    assert decide_together([hard, short], [one]) == (0, hard)
    deep = replace(easy, path="full")
    assert decide_together([deep, short], [one]) == (0, replace(deep, head="exact"))


def test_costs_are_those_of_the_table_above() -> None:
    manifest = measured_manifest("")
    for head, shares in zip(HEADS, ((0.26, 0.50, 0.73, 0.96), (0.30, 0.53, 0.77, 1.0)), strict=True):
        found = [round(compute_share(manifest, path, head=head), 2) for path in manifest.paths_by_depth]
        assert tuple(found) == shares


KINDS = st.sampled_from(["good", "fair", "poor", "-"])
WORDS = st.tuples(*[st.tuples(KINDS, KINDS)] * 4).map(
    lambda kinds: " ".join(f"{name}:{'/'.join(both)}" for name, both in zip(NAMES, kinds, strict=True))
)
MEASURED = st.builds(
    measured_manifest,
    WORDS,
    task=st.sampled_from(["math", "general"]),
    keeps=st.tuples(*[st.floats(0.0, 1.0)] * 3),
    tasks=st.dictionaries(st.sampled_from(TASKS), st.sampled_from(NAMES)),
    rules=st.sampled_from([(), RULES, RULES[:2]]),
)


@given(
    manifest=MEASURED,
    load=st.integers(0, 20),
    quality=st.sampled_from([BALANCED, HIGH, FULL]),
    length=st.integers(0, 1000),
    verdict=st.sampled_from(["math", "general", None]),
    language=st.sampled_from(["en", "de", None]),
    serving=st.sampled_from(["cheap", "exact"]),
)
def test_path_whose_gate_failed_is_never_taken_unless_named_or_fast(
    manifest: Manifest,
    load: int,
    quality: Quality,
    length: int,
    verdict: Task | None,
    language: str | None,
    serving: HeadKind,
) -> None:
    pool = [student(manifest=manifest, head=serving, num_running=load)]
    if not manifest.figures:
        return
    found = route(pool, verdict, quality=quality, num_prompt_tokens=length, language=language)
    if (found.path, found.head) != ("full", "exact"):
        figures = manifest.find_figures(found.path, found.head, found.task, "int8", "en")
        assert figures is not None
        assert gate(figures) == "passed"
        assert found.head == "exact" or serving == "cheap"
        assert language != "de"
        assert quality is not HIGH or figures.verdict_fidelity == "passed"


@given(manifest=MEASURED, load=st.integers(0, 20), length=st.integers(0, 1000))
def test_more_quality_never_costs_less(manifest: Manifest, load: int, length: int) -> None:
    pool = [cheap(manifest, num_running=load)]
    found = [route(pool, quality=quality, num_prompt_tokens=length) for quality in Quality]
    shares = [compute_share(manifest, manifest.path(one.path), head=one.head) for one in found]
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("quality", "num_tokens", "idle", "busy"),
    [
        ("balanced", 100, ("b", "cheap", Reason.TASK), ("b", "cheap", Reason.TASK)),
        ("balanced", 1000, ("full", "cheap", Reason.PROMPT_LENGTH), ("b", "cheap", Reason.LOAD)),
        ("high", 100, ("full", "exact", Reason.MIN_QUALITY), ("full", "exact", Reason.MIN_QUALITY)),
        ("fast", 100, ("b", "cheap", Reason.TASK), ("a", "cheap", Reason.LOAD)),
        ("full", 100, ("full", "exact", Reason.WISHED_QUALITY), ("full", "exact", Reason.WISHED_QUALITY)),
    ],
)
def test_path_is_that_of_the_example_in_the_documentation(
    quality: str, num_tokens: int, idle: tuple[str, HeadKind, Reason], busy: tuple[str, HeadKind, Reason]
) -> None:
    manifest = measured_manifest(
        "a:poor b:fair full:fair", keeps=(0.85, 0.96), tasks={"math": "b"}, rules=((512, "a"), (None, "full"))
    )
    for num_running, expected in ((IDLE, idle), (BUSY, busy)):
        pool = [cheap(manifest, num_running=num_running)]
        assert place(route(pool, num_prompt_tokens=num_tokens, quality=Quality(quality))) == expected
