"""Which path a request takes on a student, and why, as tables."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.student.manifest import DepthRule, Exit, Manifest, Retention, StudentPath, find_problems
from router.decision import Quality, Reason, RouteDecision, RoutePreferences, StudentState, TaskScores
from router.policy import PolicyConfig, find_task, needs_task, occupancy
from router.tasks import TASKS, Task
from tests.router.students import BUSY, IDLE, NAMES, RULES, route, scores, student, student_manifest

FAST, BALANCED, HIGH, FULL = Quality


@pytest.mark.parametrize(
    ("verdict", "preferences", "task", "path", "reason"),
    [
        ("math", {}, "math", "a", Reason.TASK),
        ("fact", {"task": "math"}, "math", "a", Reason.WISHED_TASK),
        (None, {"task": "math"}, "math", "a", Reason.WISHED_TASK),
        ("general", {}, "general", "full", Reason.GENERAL),
        (None, {}, "general", "full", Reason.CLASSIFIER_UNAVAILABLE),
        ("math", {"task": "general"}, "general", "full", Reason.WISHED_TASK),
        ("general", {"quality": Quality.FAST}, "general", "full", Reason.GENERAL),
        (None, {"quality": Quality.FAST}, "general", "full", Reason.CLASSIFIER_UNAVAILABLE),
        ("legal", {}, "legal", "full", Reason.NO_TASK_PATH),
        ("math", {"task": "legal"}, "legal", "full", Reason.NO_TASK_PATH),
        ("math", {"path": "b"}, "math", "b", Reason.WISHED_PATH),
        (None, {"path": "b"}, "general", "b", Reason.WISHED_PATH),
        ("math", {"path": "b", "quality": Quality.FULL}, "math", "b", Reason.WISHED_PATH),
        ("math", {"path": "full", "task": "fact"}, "fact", "full", Reason.WISHED_PATH),
        ("math", {"quality": Quality.FULL}, "math", "full", Reason.WISHED_QUALITY),
        ("legal", {"quality": Quality.FULL}, "legal", "full", Reason.WISHED_QUALITY),
        (None, {"quality": Quality.FULL}, "general", "full", Reason.WISHED_QUALITY),
        ("math", {"quality": Quality.FAST}, "math", "a", Reason.TASK),
    ],
)
def test_path_follows_task_and_preferences(
    verdict: Task | None, preferences: dict[str, Any], task: Task, path: str, reason: Reason
) -> None:
    manifest = student_manifest(keeps=(1.0, 1.0, 1.0), tasks={"math": "a", "general": "a"})
    found = route([student(manifest=manifest)], verdict, **preferences)
    assert (found.task, found.path, found.reason) == (task, path, reason)


@pytest.mark.parametrize(
    ("task_path", "rules", "num_prompt_tokens", "path", "reason"),
    [
        ("a", (), 10_000, "a", Reason.TASK),
        ("a", RULES, 0, "a", Reason.TASK),
        ("a", RULES, 128, "a", Reason.TASK),
        ("a", RULES, 129, "b", Reason.PROMPT_LENGTH),
        ("a", RULES, 512, "b", Reason.PROMPT_LENGTH),
        ("a", RULES, 513, "c", Reason.PROMPT_LENGTH),
        ("b", RULES, 129, "b", Reason.TASK),
        ("b", RULES, 513, "c", Reason.PROMPT_LENGTH),
        ("c", RULES, 1, "c", Reason.TASK),
        ("full", RULES, 1, "full", Reason.TASK),
        (None, RULES, 1, "full", Reason.NO_TASK_PATH),
        (None, RULES, 513, "full", Reason.NO_TASK_PATH),
        ("a", ((None, "full"),), 1, "full", Reason.PROMPT_LENGTH),
        ("a", ((512, "b"), (128, "c")), 100, "b", Reason.PROMPT_LENGTH),
        ("a", ((128, "a"), (512, "b")), 513, "full", Reason.PROMPT_LENGTH),
    ],
)
def test_path_is_the_deeper_one_of_task_and_length(
    task_path: str | None,
    rules: tuple[tuple[int | None, str], ...],
    num_prompt_tokens: int,
    path: str,
    reason: Reason,
) -> None:
    tasks = {} if task_path is None else {"math": task_path}
    manifest = student_manifest(keeps=(1.0, 1.0, 1.0), tasks=tasks, rules=rules)
    found = route([student(manifest=manifest)], num_prompt_tokens=num_prompt_tokens)
    assert (found.path, found.reason) == (path, reason)


def test_named_task_is_deepened_by_length_too() -> None:
    manifest = student_manifest(keeps=(1.0, 1.0, 1.0), rules=RULES)
    found = route([student(manifest=manifest)], "fact", task="math", num_prompt_tokens=200)
    assert (found.path, found.reason) == ("b", Reason.PROMPT_LENGTH)


@pytest.mark.parametrize(
    ("keeps", "floor", "path", "reason"),
    [
        ((0.95, 0.99, 1.0), 0.0, "a", Reason.TASK),
        ((0.9499, 0.95, 1.0), 0.0, "b", Reason.MIN_QUALITY),
        ((0.5, 0.6, 0.95), 0.0, "c", Reason.MIN_QUALITY),
        ((0.5, 0.6, 0.7), 0.0, "full", Reason.MIN_QUALITY),
        ((), 0.0, "full", Reason.MIN_QUALITY),
        ((None, 0.99), 0.0, "b", Reason.MIN_QUALITY),
        ((0.5, None, 0.99), 0.0, "c", Reason.MIN_QUALITY),
        ((1.2, 1.0, 1.0), 0.0, "a", Reason.TASK),
        ((0.97, 0.98, 0.99), 0.98, "b", Reason.MIN_QUALITY),
        ((0.97, 0.98, 0.99), 0.97, "a", Reason.TASK),
        ((0.97, 0.98, 0.99), 1.0, "full", Reason.MIN_QUALITY),
        ((0.90, 0.98, 0.99), 0.90, "b", Reason.MIN_QUALITY),
    ],
)
def test_path_keeps_the_minimum_quality(
    keeps: tuple[float | None, ...], floor: float, path: str, reason: Reason
) -> None:
    config = PolicyConfig(min_retention={"math": floor, "fact": 1.0})
    found = route([student(manifest=student_manifest(keeps=keeps))], config=config)
    assert (found.path, found.reason) == (path, reason)


@pytest.mark.parametrize(
    ("measured", "variant", "path", "reason"),
    [
        (("math", "int8"), "int8", "a", Reason.TASK),
        (("math", "fp32"), "fp32", "a", Reason.TASK),
        (("math", "fp32"), "int8", "full", Reason.MIN_QUALITY),
        (("fact", "int8"), "int8", "full", Reason.MIN_QUALITY),
    ],
)
def test_only_retention_of_this_task_and_precision_counts(
    measured: tuple[str, str], variant: str, path: str, reason: Reason
) -> None:
    manifest = student_manifest(keeps=(1.0, 1.0, 1.0), measured=measured)
    found = route([student(manifest=manifest, variant=variant)])
    assert (found.path, found.reason) == (path, reason)


def test_minimum_quality_is_asked_after_the_prompt_length() -> None:
    manifest = student_manifest(keeps=(1.0, 0.5, 0.99), rules=RULES)
    found = route([student(manifest=manifest)], num_prompt_tokens=200)
    assert (found.path, found.reason) == ("c", Reason.MIN_QUALITY)


def test_full_path_needs_no_measurement_and_meets_every_floor() -> None:
    config = PolicyConfig(balanced=1.0, min_retention={"math": 1.0})
    found = route([student(manifest=student_manifest(tasks={"math": "full"}))], config=config)
    assert (found.path, found.reason) == ("full", Reason.TASK)


@pytest.mark.parametrize(
    ("quality", "load", "task_path", "keeps", "path", "reason"),
    [
        # fast: the shallowest path that keeps 0.90, also below what the task asks for
        (FAST, IDLE, "c", (0.90, 0.95, 0.99), "a", Reason.WISHED_QUALITY),
        (FAST, IDLE, "c", (0.89, 0.90, 0.99), "b", Reason.WISHED_QUALITY),
        (FAST, IDLE, "c", (0.89, 0.89, 0.90), "c", Reason.TASK),
        (FAST, IDLE, "a", (0.90, 0.95, 0.99), "a", Reason.TASK),
        (FAST, IDLE, "a", (0.89, 0.90, 0.99), "b", Reason.MIN_QUALITY),
        (FAST, IDLE, "b", (0.90, 0.50, 0.99), "a", Reason.WISHED_QUALITY),
        (FAST, IDLE, "full", (0.5, 0.5, 0.5), "full", Reason.TASK),
        (FAST, IDLE, None, (0.5, 0.95, 0.99), "b", Reason.WISHED_QUALITY),
        (FAST, IDLE, None, (), "full", Reason.NO_TASK_PATH),
        # fast and busy: down to 0.80, and `load` only where 0.90 would not have done
        (FAST, BUSY, "c", (0.80, 0.92, 0.99), "a", Reason.LOAD),
        (FAST, BUSY, "c", (0.90, 0.92, 0.99), "a", Reason.WISHED_QUALITY),
        (FAST, BUSY, "c", (0.79, 0.92, 0.99), "b", Reason.WISHED_QUALITY),
        (FAST, BUSY, "c", (0.79, 0.79, 0.99), "c", Reason.TASK),
        (FAST, BUSY, "a", (0.80, 0.92, 0.99), "a", Reason.LOAD),
        (FAST, BUSY, "a", (0.95, 0.99, 0.99), "a", Reason.TASK),
        # balanced: 0.95 always; busy lets it go below what task and length ask for
        (BALANCED, IDLE, "c", (0.99, 0.99, 0.99), "c", Reason.TASK),
        (BALANCED, BUSY, "c", (0.95, 0.99, 0.99), "a", Reason.LOAD),
        (BALANCED, BUSY, "c", (0.94, 0.95, 0.99), "b", Reason.LOAD),
        (BALANCED, BUSY, "c", (0.94, 0.94, 0.99), "c", Reason.TASK),
        (BALANCED, BUSY, "b", (0.97, 0.94, 0.99), "a", Reason.LOAD),
        (BALANCED, BUSY, "a", (0.94, 0.95, 0.99), "b", Reason.MIN_QUALITY),
        (BALANCED, BUSY, None, (0.94, 0.95, 0.99), "b", Reason.LOAD),
        # full: never less
        (FULL, BUSY, "a", (1.0, 1.0, 1.0), "full", Reason.WISHED_QUALITY),
    ],
)
def test_path_under_quality_and_load(
    quality: Quality, load: int, task_path: str | None, keeps: tuple[float, ...], path: str, reason: Reason
) -> None:
    tasks = {} if task_path is None else {"math": task_path}
    pool = [student(manifest=student_manifest(keeps=keeps, tasks=tasks), num_running=load)]
    found = route(pool, quality=quality)
    assert (found.path, found.reason) == (path, reason)


@pytest.mark.parametrize(
    ("quality", "floor", "path"),
    [(FAST, 0.0, "a"), (FAST, 0.81, "b"), (FAST, 0.93, "c"), (BALANCED, 0.995, "full")],
)
def test_load_never_goes_below_the_floor_of_the_task(quality: Quality, floor: float, path: str) -> None:
    pool = [student(manifest=student_manifest(keeps=(0.80, 0.92, 0.99), tasks={"math": "c"}), num_running=BUSY)]
    assert route(pool, quality=quality, config=PolicyConfig(min_retention={"math": floor})).path == path


@pytest.mark.parametrize("quality", [FAST, BALANCED])
def test_load_and_speed_set_the_prompt_length_aside(quality: Quality) -> None:
    manifest = student_manifest(keeps=(0.99, 0.99, 0.99), rules=RULES)
    found = route([student(manifest=manifest, num_running=BUSY)], quality=quality, num_prompt_tokens=600)
    reason = Reason.WISHED_QUALITY if quality is FAST else Reason.LOAD
    assert (found.path, found.reason) == ("a", reason)


@pytest.mark.parametrize("preferences", [{"path": "c"}, {"task": "general"}])
def test_load_leaves_named_paths_and_general_alone(preferences: dict[str, Any]) -> None:
    pool = [student(manifest=student_manifest(keeps=(1.0, 1.0, 1.0)), num_running=BUSY)]
    assert route(pool, **preferences).path == preferences.get("path", "full")


@pytest.mark.parametrize(
    ("num_running", "num_waiting", "max_running", "busy_at", "step_down", "path"),
    [
        (8, 0, 10, 0.9, True, "c"),
        (9, 0, 10, 0.9, True, "a"),
        (0, 9, 10, 0.9, True, "a"),
        (4, 5, 10, 0.9, True, "a"),
        (28, 0, 32, 0.9, True, "c"),
        (29, 0, 32, 0.9, True, "a"),
        (10, 4, 10, 1.5, True, "c"),
        (10, 5, 10, 1.5, True, "a"),
        (10, 90, 10, 0.9, False, "c"),
    ],
)
def test_student_is_busy_from_the_threshold_on(
    num_running: int, num_waiting: int, max_running: int, busy_at: float, step_down: bool, path: str
) -> None:
    manifest = student_manifest(keeps=(0.99, 0.99, 0.99), tasks={"math": "c"})
    one = student(manifest=manifest, num_running=num_running, num_waiting=num_waiting, max_running=max_running)
    assert route([one], config=PolicyConfig(busy_at=busy_at, step_down=step_down)).path == path


def test_step_down_off_leaves_fast_its_own_level() -> None:
    pool = [student(manifest=student_manifest(keeps=(0.85, 0.92, 0.99), tasks={"math": "c"}), num_running=BUSY)]
    found = route(pool, quality=FAST, config=PolicyConfig(step_down=False))
    assert (found.path, found.reason) == ("b", Reason.WISHED_QUALITY)


def test_paths_by_depth_count_layers_of_modules_and_exits() -> None:
    manifest = student_manifest()
    exits = (Exit(name="a_exit", after="a", num_blocks=3), *manifest.exits[1:])
    deep_exit = msgspec.structs.replace(manifest, exits=exits, paths=manifest.paths[::-1])
    assert find_problems(deep_exit) == []
    assert [path.name for path in manifest.paths_by_depth] == ["a", "b", "c", "full"]
    assert [path.name for path in deep_exit.paths_by_depth] == ["b", "a", "c", "full"]


def test_paths_by_depth_keep_the_order_of_the_manifest_between_equals() -> None:
    manifest = student_manifest()
    skips = StudentPath(name="skips", modules=("a", "c"), exit="c_exit")
    for place, expected in ((0, ["a", "skips", "b", "c", "full"]), (3, ["a", "b", "skips", "c", "full"])):
        paths = (*manifest.paths[:place], skips, *manifest.paths[place:])
        ordered = msgspec.structs.replace(manifest, paths=paths).paths_by_depth
        assert [path.name for path in ordered] == expected


def test_paths_by_depth_end_with_the_full_path_even_if_another_has_more_layers() -> None:
    manifest = student_manifest()
    exits = (Exit(name="a_exit", after="a", num_blocks=9), *manifest.exits[1:])
    ordered = msgspec.structs.replace(manifest, exits=exits).paths_by_depth
    assert [path.name for path in ordered] == ["b", "c", "a", "full"]


def sibling_student(
    *, fact_keeps: float, math_keeps: float, tasks: dict[str, str], rules: tuple[DepthRule, ...] = (), **fields: Any
) -> StudentState:
    """Paths `fact` and `math` run the first module and leave by exits of their own; figures are of maths."""
    manifest = student_manifest(tasks={}, keeps=(None, 0.99))
    exits = tuple(Exit(name=f"{name}_exit", after="a", num_blocks=1, is_trained=True) for name in ("fact", "math"))
    paths = tuple(StudentPath(name=name, modules=("a",), exit=f"{name}_exit") for name in ("fact", "math"))
    figures = tuple(
        Retention(path=path, task="math", variant="int8", score=score, low=score, high=score)
        for path, score in (("fact", fact_keeps), ("math", math_keeps))
    )
    manifest = msgspec.structs.replace(
        manifest,
        exits=(*exits, *manifest.exits),
        paths=(*paths, *manifest.paths[1:]),
        tasks=tasks,
        retention=(*manifest.retention, *figures),
        depth_rules=rules,
    )
    assert find_problems(manifest) == []
    return student(manifest=manifest, **fields)


def test_a_path_must_keep_enough_at_the_low_end_of_its_interval() -> None:
    """0.96 measured on few rows may as well be 0.9."""
    one = sibling_student(fact_keeps=0.5, math_keeps=0.96, tasks={"math": "math"})
    sure = one.manifest.find_retention("math", "math", "int8")
    assert sure is not None
    unsure = msgspec.structs.replace(sure, low=0.9, high=1.0)
    others = tuple(figure for figure in one.manifest.retention if figure is not sure)
    manifest = msgspec.structs.replace(one.manifest, retention=(*others, unsure))
    assert route([one]).path == "math"
    assert route([replace(one, manifest=manifest)]).path != "math"


@pytest.mark.parametrize("own", ["fact", "math"])
def test_paths_of_equal_depth_keep_their_task_while_they_are_good_enough(own: str) -> None:
    one = sibling_student(fact_keeps=0.99, math_keeps=0.96, tasks={"math": own})
    assert (route([one]).path, route([one]).reason) == (own, Reason.TASK)


def test_prompt_length_asks_for_depth_and_not_for_another_exit() -> None:
    rules = (DepthRule(max_prompt_tokens=None, path="math"),)
    one = sibling_student(fact_keeps=0.99, math_keeps=0.99, tasks={"math": "fact"}, rules=rules)
    assert (route([one]).path, route([one]).reason) == ("fact", Reason.TASK)


@pytest.mark.parametrize(("own", "other"), [("fact", "math"), ("math", "fact")])
def test_min_quality_takes_another_exit_before_more_depth(own: str, other: str) -> None:
    one = sibling_student(
        fact_keeps=0.5 if own == "fact" else 0.97, math_keeps=0.5 if own == "math" else 0.97, tasks={"math": own}
    )
    assert (route([one]).path, route([one]).reason) == (other, Reason.MIN_QUALITY)
    neither = sibling_student(tasks={"math": own}, fact_keeps=0.5, math_keeps=0.5)
    assert route([neither]).path == "b"


def test_step_down_changes_no_exit_for_nothing_and_takes_the_better_of_equals() -> None:
    own = sibling_student(fact_keeps=0.99, math_keeps=0.96, tasks={"math": "math"}, num_running=BUSY)
    assert (route([own]).path, route([own]).reason) == ("math", Reason.TASK)
    deep = sibling_student(fact_keeps=0.96, math_keeps=0.98, tasks={"math": "b"}, num_running=BUSY)
    assert (route([deep]).path, route([deep]).reason) == ("math", Reason.LOAD)


def test_confidence_is_the_classifiers_and_none_without_it() -> None:
    assert route([student()], "math").confidence == 0.75
    assert route([student()], "general").confidence == 0.75
    assert route([student()], "math", path="a").confidence == 0.75
    assert route([student()], None).confidence is None
    assert route([student()], None, task="math").confidence is None


@pytest.mark.parametrize("named", [None, *TASKS])
@pytest.mark.parametrize("verdict", [None, *TASKS])
def test_find_task_prefers_the_named_task_and_never_guesses(verdict: Task | None, named: Task | None) -> None:
    task, _ = find_task(None if verdict is None else scores(verdict), RoutePreferences(task=named))
    assert task == (named or verdict or "general")


def test_occupancy_counts_who_waits_as_well() -> None:
    assert occupancy(student(num_running=10, num_waiting=5)) == 1.5


def test_policy_defaults_are_sound() -> None:
    assert PolicyConfig().problems() == []


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"balanced": 1.01}, ["balanced must be from 0 to 1, not 1.01"]),
        ({"fast_under_load": -0.1}, ["fast_under_load must be from 0 to 1, not -0.1"]),
        ({"fast": 0.96}, ["fast_under_load, fast and balanced must not fall in this order, not 0.8, 0.96, 0.95"]),
        ({"fast": 0.79}, ["fast_under_load, fast and balanced must not fall in this order, not 0.8, 0.79, 0.95"]),
        ({"min_retention": {"math": 1.5}}, ["min_retention.math must be from 0 to 1, not 1.5"]),
        ({"min_retention": {"math": float("nan")}}, ["min_retention.math must be from 0 to 1, not nan"]),
        (
            {"min_retention": {"general": 0.5}},
            ["min_retention.general has no effect: name one of math, legal, fact, creative"],
        ),
        ({"busy_at": 0.0}, ["busy_at must be more than 0, not 0.0"]),
        ({"busy_at": float("nan")}, ["busy_at must be more than 0, not nan"]),
        ({"fast_under_load": 0.9, "balanced": 0.9}, []),
        ({"fast_under_load": 0.0, "balanced": 1.0, "min_retention": {"math": 0.0, "fact": 1.0}}, []),
        ({"busy_at": 4.0}, []),
    ],
)
def test_policy_names_what_is_wrong(values: dict[str, Any], problems: list[str]) -> None:
    assert [str(one) for one in PolicyConfig(**values).problems()] == problems


def test_policy_reports_all_mistakes() -> None:
    assert len(PolicyConfig(balanced=2.0, fast=3.0, busy_at=-1.0).problems()) == 4


def test_policy_config_is_frozen() -> None:
    config: Any = PolicyConfig()
    with pytest.raises(FrozenInstanceError):
        config.fast = 0.1


SCORES = st.floats(min_value=0.0, max_value=1.1)
KEEPS = st.tuples(*[st.none() | SCORES] * 3)
MANIFESTS = st.builds(
    student_manifest,
    keeps=KEEPS,
    tasks=st.dictionaries(st.sampled_from(TASKS), st.sampled_from(NAMES)),
    rules=st.sampled_from([(), RULES, RULES[:2]]),
)
LOADS = st.integers(min_value=0, max_value=20)
LEVELS = st.floats(min_value=0.0, max_value=1.0)
CONFIGS = st.builds(
    lambda levels, floor: PolicyConfig(
        fast_under_load=levels[0], fast=levels[1], balanced=levels[2], min_retention={"math": floor}
    ),
    st.tuples(LEVELS, LEVELS, LEVELS).map(sorted),
    LEVELS,
)


def depth(decision: RouteDecision) -> int:
    return NAMES.index(decision.path)


@given(manifest=MANIFESTS, load=LOADS, quality=st.sampled_from(Quality), config=CONFIGS, length=st.integers(0, 1000))
def test_chosen_path_is_full_or_measured_good_enough(
    manifest: Manifest, load: int, quality: Quality, config: PolicyConfig, length: int
) -> None:
    pool = [student(manifest=manifest, num_running=load)]
    found = route(pool, quality=quality, config=config, num_prompt_tokens=length)
    assert found == route(pool, quality=quality, config=config, num_prompt_tokens=length)
    if found.path != "full":
        measured = manifest.find_retention(found.path, "math", "int8")
        lowest = {FAST: config.fast_under_load if load >= 9 else config.fast, BALANCED: config.balanced}[quality]
        assert measured is not None
        assert measured.low >= max(lowest, config.min_retention["math"])


@given(manifest=MANIFESTS, load=LOADS, config=CONFIGS, length=st.integers(0, 1000))
def test_more_quality_less_load_and_longer_prompts_never_go_shallower(
    manifest: Manifest, load: int, config: PolicyConfig, length: int
) -> None:
    loaded = student(manifest=manifest, num_running=load)
    idle = replace(loaded, num_running=0)
    depths = [depth(route([loaded], quality=quality, config=config, num_prompt_tokens=length)) for quality in Quality]
    assert depths == sorted(depths)
    for quality, lower in zip(Quality, depths, strict=True):
        unloaded = route([idle], quality=quality, config=config, num_prompt_tokens=length)
        longer = route([idle], quality=quality, config=config, num_prompt_tokens=length + 400)
        assert lower <= depth(unloaded) <= depth(longer)


@pytest.mark.parametrize(("likeliest", "reason"), [("general", Reason.GENERAL), ("math", Reason.UNCLASSIFIED)])
def test_general_by_confidence_is_not_doubt(likeliest: Task, reason: Reason) -> None:
    other: Task = "math" if likeliest == "general" else "general"
    found = TaskScores(task="general", confidence=0.6, probabilities={other: 0.4, likeliest: 0.6})
    assert find_task(found, RoutePreferences()) == ("general", reason)
    assert find_task(None, RoutePreferences(), Reason.ROUTER_OFF) == ("general", Reason.ROUTER_OFF)


def test_paths_by_depth_are_found_once_for_each_manifest() -> None:
    manifest = student_manifest()
    other = msgspec.structs.replace(manifest, paths=manifest.paths[1:])
    assert manifest.paths_by_depth is manifest.paths_by_depth
    assert [path.name for path in other.paths_by_depth] == ["b", "c", "full"]
    assert other.multiply_adds_by_depth == tuple(other.multiply_adds_on(path) for path in other.paths_by_depth)


@pytest.mark.parametrize(
    ("preferences", "num_students", "expected"),
    [
        (RoutePreferences(), 1, True),
        (RoutePreferences(), 2, True),
        (RoutePreferences(task="math"), 2, False),
        (RoutePreferences(path="full"), 1, False),
        (RoutePreferences(path="full"), 2, True),
        (RoutePreferences(quality=Quality.FULL), 1, False),
        (RoutePreferences(quality=Quality.FULL), 2, True),
        (RoutePreferences(quality=Quality.FULL, student="one"), 2, False),
        (RoutePreferences(student="one"), 2, True),
    ],
)
def test_task_has_a_say_unless_student_and_path_are_settled(
    preferences: RoutePreferences, num_students: int, expected: bool
) -> None:
    assert needs_task(preferences, num_students) is expected


@pytest.mark.parametrize(
    ("quality", "num_tokens", "idle", "busy"),
    [
        ("balanced", 100, ("b", Reason.TASK), ("b", Reason.TASK)),
        ("balanced", 1000, ("full", Reason.PROMPT_LENGTH), ("b", Reason.LOAD)),
        ("fast", 100, ("b", Reason.TASK), ("a", Reason.LOAD)),
        ("fast", 1000, ("b", Reason.WISHED_QUALITY), ("a", Reason.LOAD)),
        ("full", 1000, ("full", Reason.WISHED_QUALITY), ("full", Reason.WISHED_QUALITY)),
    ],
)
def test_path_is_that_of_the_example_in_the_documentation(
    quality: str, num_tokens: int, idle: tuple[str, Reason], busy: tuple[str, Reason]
) -> None:
    manifest = student_manifest(keeps=(0.85, 0.96), tasks={"math": "b"}, rules=((512, "a"), (None, "full")))
    for num_running, expected in ((IDLE, idle), (BUSY, busy)):
        pool = [student(manifest=manifest, num_running=num_running)]
        found = route(pool, num_prompt_tokens=num_tokens, quality=Quality(quality))
        assert (found.path, found.reason) == expected
