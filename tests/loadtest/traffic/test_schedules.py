"""Schedules: even, as a Poisson process, and played again from a file."""

import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.traffic.reading import WorkloadError
from loadtest.traffic.schedules import moments, read_trace, write_trace
from loadtest.traffic.workload import Schedule


def test_constant_is_even_and_ends_with_the_window() -> None:
    found = moments(Schedule(kind="constant", rate=4.0, warm_up_s=1, duration_s=2), seed=1)
    assert found == [number / 4 for number in range(12)]


def test_poisson_has_the_rate_and_the_spread_of_one() -> None:
    schedule = Schedule(kind="poisson", rate=20.0, warm_up_s=0, duration_s=500)
    found = moments(schedule, seed=3)
    assert 9600 < len(found) < 10400
    gaps = [after - before for before, after in pairwise(found)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)  # a jittered grid has far less
    counts = [sum(second <= moment < second + 1 for moment in found) for second in range(500)]
    assert statistics.variance(counts) == pytest.approx(20, rel=0.3)


def test_poisson_is_the_same_for_a_seed_and_another_for_another() -> None:
    schedule = Schedule(kind="poisson", rate=5.0)
    assert moments(schedule, 1) == moments(schedule, 1) != moments(schedule, 2)


def test_trace_is_played_again(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    write_trace(file, [0.0, 0.5, 3.25, 80.0])
    schedule = Schedule(kind="trace", trace=str(file), warm_up_s=0, duration_s=10)
    assert moments(schedule, 1) == [0.0, 0.5, 3.25]


@pytest.mark.parametrize("content", ["", "# nothing\n", "2\n1\n", "-1\n2\n", "soon\n"])
def test_bad_traces_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "trace.csv").write_text(content)
    with pytest.raises(WorkloadError, match="trace"):
        read_trace(tmp_path / "trace.csv")
