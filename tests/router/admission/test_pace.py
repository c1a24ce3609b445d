"""Estimates from measured speeds, and bounds that nothing but what a path can do makes longer."""

from typing import Any

import pytest

from engines.sequence import Finish, FinishReason, GenerationRequest, SamplingParams, Timings, Usage
from router.admission.least_time import Need
from router.admission.pace import FORGET_S, DrainRate, Pace


class Watched:
    """A pace, and sequences that end as the test says, one after the other."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.now_s = 0.0

    def see(
        self,
        first_s: float,
        each_s: float,
        num_tokens: int = 101,
        *,
        prompt: int = 10,
        cached: int = 0,
        path: str = "full",
        ran: str | None = None,
        reason: str = "stop",
        num_beside: int = 0,
        num_for_a_while: int = 0,
        num_times: int = 3,
        **sampling: Any,
    ) -> None:
        for _ in range(num_times):
            begun_s = self.now_s
            self.now_s += first_s + each_s * (num_tokens - 1)
            for num_more in (num_beside, num_beside + num_for_a_while, num_beside):
                self.pace.count_running(1 + num_more, begun_s + first_s / 2)
            request = GenerationRequest(
                id="s",
                prompt_token_ids=(0,) * prompt,
                path=path,
                sampling=SamplingParams(max_tokens=num_tokens, **sampling),
                cache_salt="them",
            )
            times = Timings(
                queued_s=begun_s, admitted_s=begun_s, first_token_s=begun_s + first_s, finished_s=self.now_s
            )
            usage = Usage(num_prompt_tokens=prompt, num_cached_tokens=cached, num_completion_tokens=num_tokens)
            end = Finish(reason=FinishReason(reason), path=ran or path, usage=usage, timings=times)
            self.pace.observe_finish(request, end)
            self.pace.count_running(0, self.now_s)

    def least_s(self, answer: int = 101, *, prompt: int = 10, path: str = "full", exact: bool = False) -> float:
        need = Need(
            path=path,
            head="exact" if exact else "cheap",
            num_prompt_tokens=prompt,
            num_uncached_tokens=prompt,
            num_answer_tokens=answer,
        )
        return self.pace.least_s(need, self.now_s)


def test_drain_rate_is_unknown_until_enough_was_seen() -> None:
    rate = DrainRate()
    rate.add(50, 0.1, 0.0)
    assert rate.tokens_per_s is None
    rate.add(450, 0.9, 0.0)
    assert rate.tokens_per_s == pytest.approx(500)


def test_drain_rate_follows_what_is_newer() -> None:
    rate = DrainRate()
    rate.add(100_000, 100.0, 0.0)
    for _ in range(60):
        rate.add(100, 1.0, 0.0)
    assert rate.tokens_per_s == pytest.approx(100, rel=0.2)


def test_drain_rate_does_not_depend_on_how_often_it_is_told() -> None:
    whole, parts = DrainRate(), DrainRate()
    whole.add(3000, 5.0, 0.0)
    for _ in range(50):
        parts.add(60, 0.1, 0.0)
    assert whole.tokens_per_s == pytest.approx(parts.tokens_per_s)


def test_drain_rate_takes_no_time_as_no_news() -> None:
    rate = DrainRate()
    rate.add(1000, 1.0, 0.0)
    rate.add(0, 0.0, 0.0)
    assert rate.tokens_per_s == pytest.approx(1000)


def test_drain_rate_that_is_stale_is_shown_and_not_used() -> None:
    rate = DrainRate()
    rate.add(1000, 1.0, 5.0)
    assert rate.lately(5.0 + FORGET_S) == pytest.approx(1000)
    assert rate.lately(6.0 + FORGET_S) is None
    assert rate.tokens_per_s == pytest.approx(1000)


def test_drain_rate_begins_anew_after_it_was_stale() -> None:
    rate = DrainRate()
    rate.add(1, 1000.0, 1000.0)
    rate.add(50, 0.1, 2000.0)
    assert rate.lately(2000.0) is None
    rate.add(450, 0.9, 2001.0)
    assert rate.lately(2001.0) == pytest.approx(500)


def test_pace_knows_nothing_at_first() -> None:
    watched = Watched()
    assert watched.least_s(1000) == 0.0


def test_least_time_is_that_of_the_fastest_of_some() -> None:
    watched = Watched()
    watched.see(5.0, 0.5, num_times=1)
    assert watched.least_s() == 0.0  # a first answer warms up, and one alone may have been held up
    watched.see(0.5, 0.01, num_times=2)
    assert watched.least_s() == pytest.approx(1.5, rel=0.1)
    assert watched.least_s(1) == pytest.approx(0.5, rel=0.1)


def test_least_time_rises_slowly_and_falls_at_once() -> None:
    watched = Watched()
    watched.see(1.0, 0.01)
    watched.see(9.0, 0.01, num_times=1)
    assert 1.0 < watched.least_s(1) < 2.0
    watched.see(0.1, 0.01, num_times=1)
    assert watched.least_s(1) == pytest.approx(0.1)


def test_least_time_is_forgotten() -> None:
    watched = Watched()
    watched.see(1.0, 0.01)
    watched.now_s += FORGET_S + 1
    assert watched.least_s() == 0.0
    watched.see(1.0, 0.01, num_times=2)
    assert watched.least_s() == 0.0


def test_long_prompts_and_contexts_say_nothing_of_short_ones() -> None:
    watched = Watched()
    watched.see(20.0, 0.5, num_tokens=3, prompt=4000)
    assert watched.least_s(3) == 0.0
    assert watched.least_s(3, prompt=6000) == pytest.approx(21.0)


def test_short_prompts_bound_long_ones_and_long_ones_refute_short_ones() -> None:
    watched = Watched()
    watched.see(2.0, 0.5)
    assert watched.least_s(1, prompt=4000) == pytest.approx(2.0)
    watched.see(1.0, 0.1, prompt=4000, num_times=1)
    assert watched.least_s(1) == pytest.approx(1.0)
    assert watched.least_s(101) == pytest.approx(11.0)


@pytest.mark.parametrize(
    "slowed",
    [
        {"num_beside": 31},
        {"num_for_a_while": 31},
        {"logit_bias": {1: 1.0}},
        {"logprobs": 20},
        {"frequency_penalty": 1.0},
        {"reason": "abort"},
        {"ran": "short"},
    ],
)
def test_what_was_slowed_down_makes_no_time_longer(slowed: dict[str, Any]) -> None:
    watched = Watched()
    watched.see(2.0, 0.09, **slowed)
    assert watched.least_s() == 0.0
    watched.see(1.0, 0.01)
    watched.see(2.0, 0.09, **slowed)
    assert watched.least_s() == pytest.approx(2.0)


def test_speed_beside_others_is_at_least_the_speed_alone() -> None:
    watched = Watched()
    watched.see(1.0, 0.1)
    watched.see(0.4, 0.05, num_beside=31)
    assert watched.least_s() == pytest.approx(5.4)


def test_cached_prompts_do_not_count_as_computed_ones() -> None:
    watched = Watched()
    watched.see(2.0, 0.01, cached=8)
    assert watched.least_s(1) == 0.0


def test_every_path_and_head_has_times_of_its_own() -> None:
    watched = Watched()
    watched.see(2.0, 0.1)
    assert watched.least_s(path="short") == watched.least_s(exact=True) == 0.0
    assert watched.least_s() > 0.0
