"""Which students of the pool are asked, in which order, and what is said when none can take a request."""

from typing import Any

import msgspec
import pytest

from models.errors import Unavailable, UnknownModel
from models.student.manifest import Manifest
from router.decision import Health, Reason, RoutePreferences, StudentState, Target
from router.policy import choose_student
from tests.router.students import BUSY, route, scores, student, student_manifest


@pytest.mark.parametrize(
    ("students", "order"),
    [
        ([("x", {}), ("y", {}), ("z", {})], "x y z"),
        ([("x", {"tasks": {"fact"}}), ("y", {}), ("z", {"tasks": {"math", "fact"}})], "z y x"),
        ([("x", {}), ("y", {"tasks": {"math"}, "num_running": 10, "num_waiting": 10})], "y x"),
        ([("x", {"num_running": 2}), ("y", {"num_running": 1}), ("z", {"num_waiting": 1})], "y z x"),
        ([("x", {"num_running": 5, "num_waiting": 1}), ("y", {"num_running": 5})], "y x"),
        ([("x", {"num_running": 3}), ("y", {"num_running": 4, "max_running": 20})], "y x"),
        ([("x", {"num_running": 1, "max_running": 3}), ("y", {"num_running": 2, "max_running": 6})], "x y"),
        ([("x", {"tasks": {"fact"}, "num_running": 1}), ("y", {"tasks": {"legal"}})], "y x"),
        ([("x", {"health": Health.LOADING}), ("y", {"num_running": 9})], "y x"),
        ([("x", {"health": Health.LOADING, "tasks": {"math"}}), ("y", {"tasks": {"fact"}})], "y x"),
        ([("x", {"health": Health.LOADING}), ("y", {"health": Health.LOADING, "tasks": {"math"}})], "y x"),
        ([("x", {"health": Health.LOADING})], "x"),
    ],
)
def test_students_are_tried_in_order(students: list[tuple[str, dict[str, Any]]], order: str) -> None:
    pool = [student(name, **fields | {"tasks": frozenset(fields.get("tasks", ()))}) for name, fields in students]
    candidates, skipped = choose_student(scores("math"), RoutePreferences(), pool)
    assert [one.name for one in candidates] == order.split()
    assert skipped == {}
    found = route(pool)
    assert [found.student, *(target.student for target in found.fallbacks)] == order.split()


def test_student_for_general_is_one_that_says_so() -> None:
    pool = [student("x"), student("y", tasks=frozenset({"math"})), student("z", tasks=frozenset({"general"}))]
    assert [one.name for one in choose_student(None, RoutePreferences(), pool)[0]] == ["z", "x", "y"]


def test_student_follows_the_named_task_not_the_verdict() -> None:
    pool = [student("x", tasks=frozenset({"math"})), student("y", tasks=frozenset({"fact"}))]
    assert route(pool, "math", task="fact").student == "y"


def test_students_that_cannot_take_it_are_skipped_with_a_sentence() -> None:
    pool = [
        student("sick", health=Health.UNHEALTHY, error="out of memory"),
        student("ill", health=Health.UNHEALTHY),
        student("going", health=Health.DRAINING, tasks=frozenset({"math"})),
        student("well"),
    ]
    found = route(pool)
    assert (found.student, found.fallbacks) == ("well", ())
    assert found.skipped == {
        "sick": "it is unhealthy: out of memory",
        "ill": "it is unhealthy",
        "going": "it is draining and takes no new requests",
    }


def test_nobody_left_says_who_and_why() -> None:
    pool = [student("sick", health=Health.UNHEALTHY, error="disk full"), student("going", health=Health.DRAINING)]
    with pytest.raises(Unavailable) as caught:
        route(pool)
    assert caught.value.retry_after_s == 5
    assert "`sick`: it is unhealthy: disk full; `going`: it is draining" in caught.value.message


@pytest.mark.parametrize("preferences", [{}, {"path": "a"}])
def test_empty_pool_is_unavailable(preferences: dict[str, Any]) -> None:
    with pytest.raises(Unavailable, match="the server has none"):
        route([], **preferences)


def test_named_student_is_the_only_one_asked() -> None:
    pool = [student("x"), student("y", tasks=frozenset({"fact"})), student("z", health=Health.UNHEALTHY)]
    found = route(pool, student="y")
    assert (found.student, found.fallbacks, found.skipped) == ("y", (), {})


def test_named_student_that_is_ill_is_not_replaced() -> None:
    with pytest.raises(Unavailable, match="`y`: it is unhealthy: oops"):
        route([student("x"), student("y", health=Health.UNHEALTHY, error="oops")], student="y")


@pytest.mark.parametrize(("pool", "known"), [([student("x"), student("y")], "`x`, `y`"), ([], "none")])
def test_unknown_student_is_refused_with_those_that_exist(pool: list[StudentState], known: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        route(pool, student="w" * 1000)
    assert caught.value.message == f"the student `{'w' * 200}` does not exist; this server has {known}"
    assert caught.value.param == "model"


def test_unknown_path_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownModel) as caught:
        route([student("x")], path="q" * 1000)
    listed = "`x:a`, `x:b`, `x:c`, `x:full`"
    assert caught.value.message == f"the path `{'q' * 200}` does not exist; this server has {listed}"
    assert caught.value.param == "path"


def single_path_manifest() -> Manifest:
    manifest = student_manifest(tasks={})
    return msgspec.structs.replace(manifest, paths=manifest.paths[-1:])


def test_named_path_goes_to_a_student_that_has_it() -> None:
    pool = [student("bare", manifest=single_path_manifest()), student("rich")]
    found = route(pool, path="b")
    assert (found.student, found.path, found.fallbacks) == ("rich", "b", ())
    assert found.skipped == {"bare": "it has no path `b`"}


def test_named_path_that_another_student_has_is_unknown_on_the_named_one() -> None:
    pool = [student("bare", manifest=single_path_manifest()), student("rich")]
    with pytest.raises(UnknownModel, match=r"this server has `bare:full`$"):
        route(pool, student="bare", path="b")


def test_named_path_whose_student_is_ill_is_unavailable_not_unknown() -> None:
    pool = [student("bare", manifest=single_path_manifest()), student("rich", health=Health.UNHEALTHY)]
    with pytest.raises(Unavailable, match="`bare`: it has no path `b`; `rich`: it is unhealthy"):
        route(pool, path="b")


def test_fallbacks_have_their_own_paths() -> None:
    pool = [
        student("x", manifest=student_manifest(keeps=(0.99,))),
        student("y", manifest=student_manifest(keeps=(0.5, 0.97)), num_running=1),
        student("z", manifest=student_manifest(tasks={}), num_running=2),
    ]
    found = route(pool)
    assert (found.student, found.path, found.reason) == ("x", "a", Reason.TASK)
    assert found.fallbacks == (
        Target(student="y", path="b", reason=Reason.MIN_QUALITY),
        Target(student="z", path="full", reason=Reason.NO_TASK_PATH),
    )


def test_fallback_that_is_busy_steps_down_and_the_first_does_not() -> None:
    manifest = student_manifest(keeps=(0.99, 0.99, 0.99), tasks={"math": "c"})
    found = route([student("x", manifest=manifest), student("y", manifest=manifest, num_running=BUSY)])
    assert (found.path, found.reason, found.fallbacks) == (
        "c",
        Reason.TASK,
        (Target(student="y", path="a", reason=Reason.LOAD),),
    )
