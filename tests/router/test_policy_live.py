"""What live quality changes of a decision: paths that are out, and paths that are enough under load."""

from typing import Any

import pytest

from models.student.manifest import HeadKind, Manifest
from router.decision import Quality, Reason, RouteDecision, StudentState
from router.quality.live import LiveQuality, PathUse
from router.tasks import Task
from tests.router.students import BUSY, IDLE, measured_manifest, route, student, student_manifest

FAST, BALANCED, HIGH, FULL = Quality
MEASURED = "a:fair/fair b:fair/fair c:fair/fair full:fair"


def use(spelled: str, task: Task = "math") -> PathUse:
    """`a`: path a with the cheap head; `a/exact`: with the exact one."""
    path, _, head = spelled.partition("/")
    kind: HeadKind = "exact" if head == "exact" else "cheap"
    return PathUse("one", task, path, kind)


def uses(spelled: str) -> frozenset[PathUse]:
    return frozenset(use(one) for one in spelled.split())


def cheap(manifest: Manifest, **fields: Any) -> StudentState:
    return student(manifest=manifest, head="cheap", **fields)


def place(decision: RouteDecision) -> tuple[str, HeadKind, Reason]:
    return decision.path, decision.head, decision.reason


@pytest.mark.parametrize(
    ("out", "quality", "path", "head", "reason"),
    [
        ("", BALANCED, "a", "cheap", Reason.TASK),
        ("a", BALANCED, "a", "exact", Reason.TASK),
        ("a a/exact", BALANCED, "b", "cheap", Reason.MIN_QUALITY),
        ("a a/exact b c", BALANCED, "b", "exact", Reason.MIN_QUALITY),
        ("a a/exact b b/exact c c/exact", BALANCED, "full", "cheap", Reason.MIN_QUALITY),
        ("a a/exact b b/exact c c/exact full", BALANCED, "full", "exact", Reason.MIN_QUALITY),
        ("a a/exact b b/exact c c/exact full full/exact", BALANCED, "full", "exact", Reason.MIN_QUALITY),
        ("a a/exact", FAST, "b", "cheap", Reason.MIN_QUALITY),
        ("a", FAST, "a", "exact", Reason.TASK),
        ("a a/exact", FULL, "full", "exact", Reason.WISHED_QUALITY),
    ],
)
def test_path_that_is_out_is_not_taken(out: str, quality: Quality, path: str, head: HeadKind, reason: Reason) -> None:
    manifest = measured_manifest(MEASURED)
    for num_running in (IDLE, BUSY):
        decision = route([cheap(manifest, num_running=num_running)], quality=quality, live=LiveQuality(out=uses(out)))
        assert place(decision) == (path, head, reason)


def test_path_that_is_out_is_taken_by_name_and_for_other_tasks_and_students() -> None:
    manifest = measured_manifest(MEASURED)
    live = LiveQuality(out=uses("a a/exact"))
    assert place(route([cheap(manifest)], path="a", live=live)) == ("a", "cheap", Reason.WISHED_PATH)
    others = LiveQuality(out=frozenset({use("a", "legal"), use("a")._replace(student="two")}))
    assert place(route([cheap(manifest)], live=others)) == ("a", "cheap", Reason.TASK)


def test_path_that_is_out_is_not_taken_on_a_student_without_figures() -> None:
    manifest = student_manifest(keeps=(0.97, 0.98, 0.99))
    live = LiveQuality(out=uses("a/exact"))
    assert place(route([student(manifest=manifest)], live=live))[0] == "b"
    assert place(route([student(manifest=manifest)], quality=FAST, live=live))[0] == "b"


def test_full_path_of_general_requests_loses_its_cheap_head() -> None:
    manifest = measured_manifest("full:fair", task="general")
    live = LiveQuality(out=frozenset({use("full", "general")}))
    assert place(route([cheap(manifest)], "general")) == ("full", "cheap", Reason.GENERAL)
    assert place(route([cheap(manifest)], "general", live=live)) == ("full", "exact", Reason.GENERAL)


@pytest.mark.parametrize(
    ("enough", "quality", "num_running", "path", "head", "reason"),
    [
        ("", BALANCED, BUSY, "b", "cheap", Reason.TASK),
        ("a", BALANCED, IDLE, "b", "cheap", Reason.TASK),
        ("a", BALANCED, BUSY, "a", "cheap", Reason.LOAD),
        ("a/exact", BALANCED, BUSY, "a", "exact", Reason.LOAD),
        ("a", FAST, BUSY, "a", "cheap", Reason.LOAD),
        ("a", HIGH, BUSY, "full", "exact", Reason.MIN_QUALITY),
        ("a", FULL, BUSY, "full", "exact", Reason.WISHED_QUALITY),
    ],
)
def test_under_load_is_taken_what_live_answers_show_to_be_enough(
    enough: str, quality: Quality, num_running: int, path: str, head: HeadKind, reason: Reason
) -> None:
    """By its other figures path a passes nothing."""
    manifest = measured_manifest("a:poor/poor b:fair/fair full:fair", tasks={"math": "b"})
    live = LiveQuality(enough_under_load=uses(enough))
    decision = route([cheap(manifest, num_running=num_running)], quality=quality, live=live)
    assert place(decision) == (path, head, reason)


def test_under_load_a_path_that_is_out_may_still_be_enough() -> None:
    manifest = measured_manifest(MEASURED)
    live = LiveQuality(out=uses("a a/exact"), enough_under_load=uses("a"))
    assert place(route([cheap(manifest, num_running=IDLE)], live=live))[0] == "b"
    assert place(route([cheap(manifest, num_running=BUSY)], live=live)) == ("a", "cheap", Reason.LOAD)
