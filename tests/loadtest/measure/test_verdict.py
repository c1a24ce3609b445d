"""What makes a run invalid, and what it missed."""

from loadtest.measure.record import Record
from loadtest.measure.verdict import cannot_measure, invalid_because, keeps_slo, missed, remarks
from loadtest.traffic.reading import read_workload
from loadtest.traffic.workload import Limit, Slo

HEADLINE = read_workload("headline")


def test_late_arrivals_and_a_busy_generator_make_a_run_invalid() -> None:
    assert (
        invalid_because(
            {"late_share": 0.009, "generator_cpu_share": 0.79, "hit_ratio": 0.41, "repeat_ratio": 0.4}, HEADLINE
        )
        == []
    )
    (late,) = invalid_because({"late_share": 0.02}, HEADLINE)
    assert "2.0% of the sessions began late" in late
    (busy,) = invalid_because({"generator_cpu_share": 0.9}, HEADLINE)
    assert "90% of its core" in busy


def test_another_hit_ratio_than_pinned_makes_a_run_invalid() -> None:
    (more,) = invalid_because({"hit_ratio": 1.0, "repeat_ratio": 0.4}, HEADLINE)
    assert "take another" in more
    (less,) = invalid_because({"hit_ratio": 0.3, "repeat_ratio": 0.4}, HEADLINE)
    assert "30.0%" in less
    assert invalid_because({"hit_ratio": 0.0}, HEADLINE) == []  # a server without a cache
    assert any("generated anew" in remark for remark in remarks({"hit_ratio": 0.0}, HEADLINE, []))


def test_missed_thresholds_are_named() -> None:
    limits = {"success_rate": Limit(least=0.9), "p95_ttft_ms": Limit(most=100), "p95_tpot_ms": Limit(most=10)}
    problems = missed({"success_rate": 0.5, "p95_ttft_ms": 99}, limits)
    assert problems == ["success_rate is 0.5, at least 0.9 is wanted", "p95_tpot_ms was not seen"]


def test_slo_is_kept_by_the_95th_percentiles_and_by_nearly_every_request() -> None:
    slo = Slo(ttft_ms=380, tpot_ms=50)
    good = {"success_rate": 0.9995, "p95_ttft_ms": 380, "p95_tpot_ms": 50}
    assert keeps_slo(good, slo)
    assert not keeps_slo(good | {"success_rate": 0.99}, slo)
    assert not keeps_slo(good | {"p95_ttft_ms": 381}, slo)
    assert not keeps_slo(good | {"p95_tpot_ms": 51}, slo)
    assert not keeps_slo({}, slo)


def test_mostly_failed_requests_cannot_be_measured() -> None:
    def record(failure: str | None) -> Record:
        return Record(session=0, task="math", scheduled_s=0, sent_s=0, failure=failure)

    assert cannot_measure([record(None), record("a")]) is None
    told = cannot_measure([record(None), record("status 429"), record("status 429"), record("cut")])
    assert told is not None
    assert "status 429" in told
    assert "3 of 4" in told
    assert "no session began" in str(cannot_measure([]))
