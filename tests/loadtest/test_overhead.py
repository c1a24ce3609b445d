"""What a server adds to set times."""

import pytest

from loadtest.measure.record import Record
from loadtest.overhead import describe, gap_ms, judged, lateness_ms, summary, warm_up_s


def record(gaps_s: list[float], num_tokens: int, first_s: float = 1.203) -> Record:
    return Record(
        session=0,
        task="math",
        scheduled_s=1.0,
        sent_s=1.0,
        first_s=first_s,
        last_s=first_s + sum(gaps_s),
        gaps_s=gaps_s,
        num_answer_tokens=num_tokens,
    )


def test_token_is_late_by_what_it_comes_after_its_set_time() -> None:
    late = lateness_ms(record([0.050, 0.060, 0.045], 4), 200.0, 50.0)
    assert late == pytest.approx([3, 3, 13, 8])


def test_of_tokens_in_one_chunk_the_first_and_the_last_are_known() -> None:
    assert lateness_ms(record([0.104], 3), 200.0, 50.0) == pytest.approx([3, 7])


def test_dropped_requests_are_counted() -> None:
    broken = record([], 1)
    broken.failure = "cut"
    found = summary([record([0.05], 2), broken], 200.0, 50.0)
    assert (found["num_requests"], found["num_dropped"], found["num_tokens"]) == (2, 1, 2)
    assert found["p50_added_ms"] == pytest.approx(3)
    assert summary([broken], 200.0, 50.0) == {"num_requests": 1, "num_dropped": 1}


def test_more_streams_have_fewer_tokens_each() -> None:
    assert gap_ms(1) == gap_ms(64) == 50.0
    assert gap_ms(1024) == 256.0
    assert warm_up_s(1024) > 1.5 * 64 * 0.256


def test_aims_are_judged() -> None:
    found = {"64": {"p99_added_ms": 6.0, "num_dropped": 0}, "1024": {"p99_added_ms": 9.0, "num_dropped": 2}}
    assert [line.rpartition(": ")[2] for line in judged(found)] == ["missed", "missed, 2"]
    assert "nothing measured" in describe({"problem": "dead"})
