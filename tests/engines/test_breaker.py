"""The breaker: closed, open after failures in a row, one trial call per pause."""

from engines.breaker import Breaker
from tests.router.clocks import Clock


def test_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 10.0, Clock())
    breaker.fail()
    breaker.fail()
    breaker.succeed()
    assert [breaker.fail() for _ in range(3)] == [False, False, True]
    assert breaker.is_open
    assert not breaker.allows()


def test_breaker_lets_one_try_through_per_pause() -> None:
    clock = Clock()
    breaker = Breaker(1, 10.0, clock)
    breaker.fail()
    clock.now_s = 9.9
    assert not breaker.allows()
    clock.now_s = 10.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    clock.now_s = 20.0  # the outcome of that trial was never reported
    assert breaker.allows()


def test_breaker_closes_when_a_try_succeeds_and_waits_again_when_it_fails() -> None:
    clock = Clock()
    breaker = Breaker(1, 10.0, clock)
    breaker.fail()
    clock.now_s = 10.0
    assert breaker.allows()
    clock.now_s = 12.0
    assert not breaker.fail()
    clock.now_s = 21.0
    assert not breaker.allows()
    clock.now_s = 22.0
    assert breaker.allows()
    assert breaker.succeed()
    assert not breaker.is_open
    assert [breaker.allows(), breaker.allows()] == [True, True]
