"""Estimates from measured speeds."""

import pytest

from engines.sequence import Finish, FinishReason, Timings, Usage
from router.admission.pace import FORGET_S, DrainRate, Fastest, Pace


def finish(num_tokens: int, first_s: float, each_s: float, at_s: float = 0.0, reason: str = "stop") -> Finish:
    """A sequence that began at `at_s`."""
    return Finish(
        reason=FinishReason(reason),
        path="full",
        usage=Usage(num_prompt_tokens=10, num_cached_tokens=0, num_completion_tokens=num_tokens),
        timings=Timings(
            queued_s=at_s,
            admitted_s=at_s,
            first_token_s=at_s + first_s,
            finished_s=at_s + first_s + each_s * (num_tokens - 1),
        ),
    )


def test_drain_rate_is_unknown_until_enough_was_seen() -> None:
    rate = DrainRate()
    rate.add(50, 0.1)
    assert rate.tokens_per_s is None
    rate.add(450, 0.9)
    assert rate.tokens_per_s == pytest.approx(500)


def test_drain_rate_follows_what_is_newer() -> None:
    rate = DrainRate()
    rate.add(100_000, 100.0)
    for _ in range(60):
        rate.add(100, 1.0)
    assert rate.tokens_per_s == pytest.approx(100, rel=0.2)


def test_drain_rate_does_not_depend_on_how_often_it_is_told() -> None:
    whole, parts = DrainRate(), DrainRate()
    whole.add(3000, 5.0)
    for _ in range(50):
        parts.add(60, 0.1)
    assert whole.tokens_per_s == pytest.approx(parts.tokens_per_s)


def test_drain_rate_takes_no_time_as_no_news() -> None:
    rate = DrainRate()
    rate.add(1000, 1.0)
    rate.add(0, 0.0)
    assert rate.tokens_per_s == pytest.approx(1000)


def test_fastest_falls_at_once_rises_slowly_and_is_forgotten() -> None:
    fastest = Fastest()
    for value in (5.0, 1.0, 9.0):
        fastest.add(value, 0.0)
    now = fastest.value(1.0)
    assert now is not None
    assert 1.0 < now < 2.0
    assert fastest.value(FORGET_S + 1) is None


def test_pace_knows_nothing_at_first() -> None:
    pace = Pace()
    assert pace.run_s(1000, 0.0) == 0.0
    assert pace.expected_answer(1000) == 1000


def test_pace_expects_what_answers_were_like() -> None:
    pace = Pace()
    pace.observe_finish(None, finish(101, first_s=0.5, each_s=0.01))
    assert pace.expected_answer(5000) == 101
    assert pace.expected_answer(11) == 11
    assert pace.run_s(5000, 2.0) == pytest.approx(1.5)
    assert pace.run_s(11, 2.0) == pytest.approx(0.6)


def test_pace_learns_nothing_from_what_was_broken_off() -> None:
    pace = Pace()
    pace.observe_finish(None, finish(101, first_s=0.5, each_s=0.01, reason="abort"))
    assert pace.run_s(5000, 2.0) == 0.0
