"""The formulas, on requests whose figures are known beforehand."""

from typing import Any

import pytest

from loadtest.measure.figures import (
    FORMULAS,
    e2el_s,
    figure_names,
    figures_of,
    is_good,
    late_share,
    tpot_s,
    ttft_s,
)
from loadtest.measure.record import Record
from loadtest.traffic.workload import Slo


def record(sent_s: float = 10.0, **fields: Any) -> Record:
    """A request of 5 tokens: the first after 0.2 s, the others 0.05 s apart."""
    first_s = sent_s + 0.2
    given: dict[str, Any] = {
        "first_s": first_s,
        "last_s": first_s + 0.2,
        "ended_s": first_s + 0.21,
        "gaps_s": [0.05] * 4,
        "num_answer_tokens": 5,
        "num_prompt_tokens": 20,
        "cache": "miss",
    }
    return Record(session=0, task="math", scheduled_s=sent_s, sent_s=sent_s, **given | fields)


def test_latencies_of_one_request() -> None:
    one = record()
    assert ttft_s(one) == pytest.approx(0.2)
    assert e2el_s(one) == pytest.approx(0.4)
    assert tpot_s(one) == pytest.approx(0.05)
    assert tpot_s(record(num_answer_tokens=1)) is None


def test_several_tokens_in_one_chunk_count_as_the_server_counted_them() -> None:
    assert tpot_s(record(num_answer_tokens=9, gaps_s=[0.1, 0.1])) == pytest.approx(0.025)


def test_good_is_within_every_limit() -> None:
    assert is_good(record(), Slo(ttft_ms=201, tpot_ms=51, e2el_ms=401))
    assert not is_good(record(), Slo(ttft_ms=199))
    assert not is_good(record(), Slo(tpot_ms=49))
    assert not is_good(record(), Slo(e2el_ms=399))
    assert not is_good(record(failure="broken"), Slo())
    assert is_good(record(num_answer_tokens=1), Slo(tpot_ms=1))


def test_warm_up_is_in_no_figure() -> None:
    records = [record(sent_s) for sent_s in (1.0, 11.0, 12.0, 25.0)]
    records.append(record(9.9, num_answer_tokens=500))  # began before the window
    records[-1].ended_s = 9.99
    figures = figures_of(records, 10.0, 20.0, Slo())
    assert figures["completed"] == 2
    assert figures["duration"] == 10.0
    assert figures["output_throughput"] == pytest.approx(1.0)
    assert figures["total_token_throughput"] == pytest.approx(5.0)


def test_rates_count_what_ended_in_the_window_and_latencies_what_began_in_it() -> None:
    records = [record(9.0, ended_s=11.0), record(12.0), record(19.0, first_s=21.0, last_s=29.0, ended_s=30.0)]
    figures = figures_of(records, 10.0, 20.0, Slo(ttft_ms=300))
    assert figures["request_throughput"] == pytest.approx(0.2)
    assert figures["request_goodput"] == pytest.approx(0.2)
    assert figures["completed"] == 2
    assert figures["median_ttft_ms"] == pytest.approx((200 + 2000) / 2)


def test_failures_lower_the_rates_and_give_no_latency() -> None:
    records = [record(11.0), record(12.0, failure="broken", last_s=None, first_s=None), record(13.0, has_left=True)]
    figures = figures_of(records, 10.0, 20.0, Slo(ttft_ms=300))
    assert (figures["completed"], figures["failed"], figures["left"]) == (1, 1, 1)
    assert figures["success_rate"] == 0.5
    assert figures["request_goodput"] == pytest.approx(0.1)
    assert figures["median_ttft_ms"] == pytest.approx(200)


def test_percentiles_are_interpolated_as_elsewhere() -> None:
    records = [record(11.0, first_s=11.0 + 0.1 * number) for number in range(1, 5)]
    figures = figures_of(records, 10.0, 20.0, Slo())
    assert figures["median_ttft_ms"] == pytest.approx(250)
    assert figures["p90_ttft_ms"] == pytest.approx(370)


def test_hits_are_first_turns_that_the_cache_answered() -> None:
    caches = ("hit", "join", "miss", "miss", "bypass")
    records = [record(11.0, cache=cache) for cache in caches] + [record(11.0, cache="miss", turn=1)]
    assert figures_of(records, 10.0, 20.0, Slo())["hit_ratio"] == pytest.approx(0.4)
    assert "hit_ratio" not in figures_of([record(11.0, cache=None)], 10.0, 20.0, Slo())


def test_lateness_is_told_of_what_began_late() -> None:
    records = [record(11.0), record(12.0)]
    records[1].scheduled_s = 11.9
    found = late_share(records, 10.0, 20.0)
    assert found["late_share"] == 0.5
    assert found["p99_late_ms"] == pytest.approx(99, rel=0.02)


def test_every_figure_of_a_run_has_a_name_and_every_formula_a_text() -> None:
    names = figure_names()
    assert {"p99.9_itl_ms", "request_goodput", "success_rate", "late_share", "generator_cpu_share"} <= set(names)
    assert all(FORMULAS.values())


def test_nothing_seen_is_no_figure() -> None:
    assert "success_rate" not in figures_of([], 0.0, 1.0, Slo())
