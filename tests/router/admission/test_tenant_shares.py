"""Who starts although another tenant has everything that the engine may run."""

from dataclasses import replace

import pytest

from models.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull
from router.admission.fair_queue import FairQueue
from router.admission.ticket import Bounds, Ticket, TicketStatus
from router.decision import Priority
from tests.router.admission.test_admission import Driver, is_running

BOUNDS = Bounds(max_running=8, max_running_tokens=100_000, max_queued=20, max_queued_tokens=1_000_000)


def full_driver(bounds: Bounds = BOUNDS, *, can_pause: bool = True) -> Driver:
    """Tenant `a` has all slots, two sequences in the engine that wait for one, and four requests in the queue."""
    driver = Driver(bounds=bounds, can_pause=can_pause)
    assert [is_running(driver.offer("a")) for _ in range(14)] == [True] * 10 + [False] * 4
    return driver


def num_started(tickets: list[Ticket]) -> int:
    return sum(map(is_running, tickets))


def test_another_tenant_starts_at_once_up_to_its_share() -> None:
    driver = full_driver()
    assert num_started([driver.offer("b") for _ in range(8)]) == 4


def test_engine_that_cannot_pause_is_given_no_more_than_it_runs() -> None:
    driver = full_driver(can_pause=False)
    assert num_started([driver.offer("b") for _ in range(8)]) == 0


def test_share_that_is_free_again_is_given_before_the_others_turn() -> None:
    driver = full_driver()
    tickets = [driver.offer("b") for _ in range(6)]
    driver.release(tickets[0], 100)
    assert [is_running(ticket) for ticket in tickets] == [False, True, True, True, True, False]


def test_release_asks_who_waits_no_oftener_for_many_tenants_than_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each queue's tenants are counted from all of its entries: once for each of them took a quarter of a second."""
    asked: list[object] = []
    tenants = FairQueue.tenants
    assert isinstance(tenants, property)
    monkeypatch.setattr(FairQueue, "tenants", property(lambda queue: asked.append(queue) or tenants.__get__(queue)))
    numbers = []
    for num_tenants in (2, 64):
        driver = Driver(bounds=replace(BOUNDS, max_queued=500), can_pause=True)
        first = driver.offer("a")
        for _ in range(9):
            driver.offer("a")
        for _ in range(8):
            driver.offer("b"), driver.offer("a")
        for number in range(num_tenants):
            driver.offer(f"c{number}", num_sequences=2), driver.offer(f"c{number}", num_sequences=2)
        asked.clear()
        driver.release(first, 100)
        numbers.append(len(asked))
    assert numbers[1] <= numbers[0] + 3


def test_more_tenants_than_slots_take_turns_in_the_queue() -> None:
    """Eight slots for `a`, whose paused requests go on later, and seven others; the next start as those end."""
    driver = full_driver()
    tickets = [driver.offer(f"b{number}") for number in range(12)]
    assert [is_running(ticket) for ticket in tickets] == [True] * 7 + [False] * 5
    driver.release(tickets[0], 100)
    assert num_started(tickets[1:]) == 7
    assert is_running(tickets[7])


def test_one_tenant_alone_is_bounded_as_ever() -> None:
    driver = full_driver()
    driver.release(driver.decided[0][0], 100)
    assert num_started([ticket for ticket, _ in driver.decided]) == 10


def test_tokens_are_shared_too() -> None:
    """`a` runs two sequences of eight, with all tokens."""
    driver = Driver(bounds=replace(BOUNDS, max_running_tokens=1000), can_pause=True)
    assert num_started([driver.offer("a", answer=450) for _ in range(3)]) == 2
    assert num_started([driver.offer("b", answer=150) for _ in range(8)]) == 2


def test_first_request_may_be_of_any_size_and_nothing_starts_beside_it() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_running_tokens=1000), can_pause=True)
    driver.offer("a", answer=450), driver.offer("a", answer=450)
    large, small = driver.offer("b", answer=900, num_sequences=8), driver.offer("b")
    assert (is_running(large), is_running(small)) == (True, False)


def test_nobody_starts_before_a_higher_priority_or_at_its_cost() -> None:
    driver = full_driver()
    assert not is_running(driver.offer("b", priority=Priority.LOW))
    high = Driver(bounds=BOUNDS, can_pause=True)
    for _ in range(10):
        high.offer("a", priority=Priority.HIGH)
    assert not is_running(high.offer("b"))
    assert is_running(high.offer("c", priority=Priority.HIGH))


def test_full_queue_is_no_reason_to_refuse_who_can_start() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_queued=4), can_pause=True)
    for _ in range(14):
        driver.offer("a")
    with pytest.raises(QueueFull):
        driver.offer("a")
    assert is_running(driver.offer("b"))


def test_engine_is_never_given_more_than_it_accepts() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_queued=2), can_pause=True)
    for tenant in "aaaaaaaaaabbbbbbbbccccccccc":
        try:
            driver.offer(tenant)
        except QueueFull:
            continue
    assert driver.admission.running.num_sequences <= 10


def test_queue_of_others_makes_nobody_late_who_can_start() -> None:
    driver = full_driver()
    driver.drain(20, seconds=10.0)
    with pytest.raises(DeadlineUnreachable):
        driver.offer("a", deadline_s=driver.now_s + 5.0)
    assert is_running(driver.offer("b", deadline_s=driver.now_s + 5.0))


def test_one_that_comes_too_late_in_its_turn_does_not_start_on_its_share() -> None:
    driver = full_driver()
    tickets = [driver.offer("b") for _ in range(4)]
    late = driver.offer("b", deadline_s=driver.now_s + 1.0)
    driver.now_s += 2.0
    driver.release(tickets[0], 100)
    assert late.status is TicketStatus.OVER
    assert isinstance(driver.error_of(late), DeadlineExceeded)
