"""Tenants take turns, none holds every place, and nobody's line grows without bound."""

import pytest

from models.errors import QueueFull, Unavailable
from server.tenant_line import TenantLine

MAX_WAITING, MAX_OF_TENANT = 20, 3


def make_line(num_places: int = 2) -> TenantLine[str]:
    return TenantLine(
        num_places,
        what_waits="things wait",
        retry_after_s=5.0,
        max_waiting=MAX_WAITING,
        max_waiting_of_tenant=MAX_OF_TENANT,
    )


def test_tenants_take_turns() -> None:
    line = make_line(num_places=1)
    for name in ("a1", "a2", "a3", "b1", "b2"):
        line.push(name[0], name)
    order = []
    while (job := line.pop()) is not None:
        order.append(job)
        line.release(job[0])
    assert order == ["a1", "b1", "a2", "b2", "a3"]


def test_no_tenant_takes_the_last_place() -> None:
    line = make_line()
    for name in ("a1", "a2"):
        line.push("a", name)
    assert (line.pop(), line.pop()) == ("a1", None)
    line.push("b", "b1")
    assert line.pop() == "b1"
    line.release("a")
    assert line.pop() == "a2"


def test_without_tenants_every_place_is_used() -> None:
    line = make_line()
    for name in ("1", "2", "3"):
        line.push(None, name)
    assert (line.pop(), line.pop(), line.pop()) == ("1", "2", None)


def test_a_tenant_s_line_is_bounded_by_itself() -> None:
    line = make_line()
    for number in range(MAX_OF_TENANT):
        line.push("a", str(number))
    with pytest.raises(QueueFull, match="3 of your things wait already") as caught:
        line.push("a", "one more")
    assert caught.value.retry_after_s == 5.0
    line.push("b", "another's")


def test_all_lines_together_are_bounded() -> None:
    line = make_line()
    for number in range(MAX_WAITING):
        line.push(f"tenant {number}", "job")
    with pytest.raises(Unavailable, match="20 things wait"):
        line.push("one more", "job")


def test_jobs_can_leave_the_line() -> None:
    line = make_line()
    line.push("a", "a1")
    line.push("a", "a2")
    line.remove("a", "a1")
    assert line.pop() == "a2"
    assert line.num_waiting == 0
