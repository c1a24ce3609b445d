"""What one key may use, on a clock that the test sets."""

import pytest

from models.errors import RateLimited, RequestTooLarge
from server.access.rate_limit import RATE_LIMIT_HEADERS, KeyLimits, Meter, duration_text

LIMITS = KeyLimits(requests_per_minute=6, tokens_per_minute=600, max_concurrent=2)


def told(meter: Meter, now_s: float) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in meter.headers(now_s)}


def test_requests_refill_steadily() -> None:
    meter = Meter(LIMITS, 0.0)
    for _ in range(6):
        meter.enter(0.0)
        meter.leave()
    with pytest.raises(RateLimited) as caught:
        meter.enter(4.0)
    assert caught.value.retry_after_s == pytest.approx(6.0)
    meter.enter(10.0)


def test_requests_at_once_are_bounded() -> None:
    meter = Meter(LIMITS, 0.0)
    meter.enter(0.0)
    meter.enter(0.0)
    with pytest.raises(RateLimited, match="2 requests of this key are open"):
        meter.enter(0.0)
    meter.leave()
    meter.enter(0.0)


def test_tokens_are_charged_and_what_was_not_used_comes_back() -> None:
    meter = Meter(LIMITS, 0.0)
    meter.charge(500, 0.0)
    with pytest.raises(RateLimited) as caught:
        meter.charge(200, 0.0)
    assert caught.value.retry_after_s == pytest.approx(10.0)
    meter.refund(450, 0.0)
    meter.charge(550, 0.0)


def test_refund_never_makes_more_than_a_minute_s_worth() -> None:
    meter = Meter(LIMITS, 0.0)
    meter.charge(100, 0.0)
    meter.refund(100, 60.0)
    assert told(meter, 60.0)["remaining-tokens"] == "600"


def test_request_larger_than_a_minute_s_worth_is_refused_for_good() -> None:
    with pytest.raises(RequestTooLarge, match=r"601 tokens.*600 a minute") as caught:
        Meter(LIMITS, 0.0).charge(601, 0.0)
    assert caught.value.param == "max_tokens"


def test_headers_tell_limit_rest_and_when_it_is_whole_again() -> None:
    meter = Meter(LIMITS, 0.0)
    meter.enter(0.0)
    meter.charge(150, 0.0)
    assert told(meter, 5.0) == {
        "limit-requests": "6",
        "remaining-requests": "5",
        "reset-requests": "5s",
        "limit-tokens": "600",
        "remaining-tokens": "500",
        "reset-tokens": "10s",
    }
    assert len(RATE_LIMIT_HEADERS) == 6


def test_other_limits_keep_what_was_used() -> None:
    meter = Meter(LIMITS, 0.0)
    meter.charge(500, 0.0)
    meter.resize(KeyLimits(requests_per_minute=6, tokens_per_minute=1000, max_concurrent=1), 0.0)
    assert told(meter, 0.0)["remaining-tokens"] == "500"
    meter.resize(KeyLimits(requests_per_minute=6, tokens_per_minute=100, max_concurrent=1), 0.0)
    assert told(meter, 0.0)["remaining-tokens"] == "0"
    with pytest.raises(RateLimited):
        meter.charge(1, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.02, "20ms"), (1.5, "1.5s"), (59.9999, "1m0s"), (360.0, "6m0s"), (61.25, "1m1.25s")],
)
def test_duration_is_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_work_of_unknown_size_is_settled_by_what_it_used() -> None:
    meter = Meter(LIMITS, 0.0)
    reserved = meter.reserve(500, 0.0)
    with pytest.raises(RateLimited):
        meter.reserve(200, 0.0)
    meter.settle(reserved, 100, 0.0)
    assert told(meter, 0.0)["remaining-tokens"] == "500"


def test_work_that_may_use_more_than_a_minute_s_worth_takes_all_of_it_and_is_owed() -> None:
    meter = Meter(LIMITS, 0.0)
    reserved = meter.reserve(10_000, 0.0)
    assert reserved == 600
    meter.settle(reserved, 900, 0.0)
    with pytest.raises(RateLimited) as caught:
        meter.reserve(1, 0.0)
    assert caught.value.retry_after_s == pytest.approx(30.1)
