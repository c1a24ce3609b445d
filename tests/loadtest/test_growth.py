"""How growth is fitted, and what counts as a defect."""

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest import growth
from loadtest.growth import Step, fit, judged, knee_of, measure, rows, thread_seconds, watched_threads

LENGTHS = (16, 64, 256, 1024, 4096)
USERS = (1, 4, 16, 64)


def step(load: int, *, rate: float = 100.0, loop: float = 0.1, mib: float = 500.0, **figures: float) -> Step:
    return Step(
        load=load,
        figures={"output_throughput": rate, **figures},
        resident_mib=mib,
        loop_share=loop,
        engine_share=0.8,
    )


def test_curve_is_found_again() -> None:
    found = fit(LENGTHS, [5 + 0.3 * n + 1e-4 * n**2 for n in LENGTHS], degree=2)
    assert found.coefficients == pytest.approx((5, 0.3, 1e-4), rel=1e-6)
    assert found.last_above == pytest.approx(1.0)


def test_coefficients_are_never_negative() -> None:
    found = fit(LENGTHS, [3 * n for n in LENGTHS], degree=2)
    assert all(one >= 0 for one in found.coefficients)
    assert found.coefficients[1] == pytest.approx(3)


def test_cubic_growth_of_prompts_is_a_defect_and_quadratic_is_none() -> None:
    good = [step(n, median_ttft_ms=5 + 0.3 * n + 1e-4 * n**2) for n in LENGTHS]
    bad = [step(n, median_ttft_ms=5 + 0.3 * n + 1e-4 * n**2 * (1 + n / 1000) ** 2) for n in LENGTHS]
    assert judged([], good)[1] == []
    (defect,) = judged([], bad)[1]
    assert defect.startswith("TTFT over prompt tokens")


def test_throughput_that_falls_with_users_is_a_defect() -> None:
    steps = [step(users, rate=rate) for users, rate in zip(USERS, (100, 300, 500, 300), strict=True)]
    (defect,) = judged(steps, [])[1]
    assert defect == "with 64 users throughput is 60% of the highest"


def test_memory_that_grows_faster_than_linear_is_a_defect() -> None:
    steps = [step(n, mib=400 + 1e-4 * n**2) for n in LENGTHS]
    assert [defect.split(":")[0] for defect in judged([], steps)[1]] == ["MiB over prompt tokens"]


class Windows:
    """A generator for which so many requests fit into a second."""

    def __init__(self, per_s: float) -> None:
        self.per_s, self.windows_s = per_s, list[float]()

    def measure(self, server: Any, *, duration_s: float, **_: Any) -> Any:
        self.windows_s.append(duration_s)
        return SimpleNamespace(figures={"completed": self.per_s * duration_s}, resident_mib=1.0)


def test_window_is_longer_where_few_requests_fit_in() -> None:
    server: Any = SimpleNamespace(process=SimpleNamespace(pid=os.getpid()))
    for per_s, expected in ((2.0, [5.0]), (1.0, [5.0, 15.0]), (0.01, [5.0, 15.0, 45.0])):
        windows: Any = Windows(per_s)
        measure(windows, server, 16, users=1, more=(), seconds=5.0)
        assert windows.windows_s == expected


def test_knee_is_named_with_its_cause() -> None:
    steps = [step(users, rate=rate) for users, rate in zip(USERS, (100, 300, 490, 500), strict=True)]
    assert knee_of(steps).startswith("16 users reach 490 of 500 tokens/s; there the engine is the limit")
    assert "HTTP loop (Python) is the limit" in knee_of([step(1, loop=0.9)])
    assert len(list(rows("users", steps))) == 5


def test_threads_of_this_process_took_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "WATCH_S", 0.05)
    first, others = thread_seconds(os.getpid())
    assert first > 0
    assert others >= 0
    with watched_threads(os.getpid()) as shares:
        until_s = time.process_time() + 0.3
        while time.process_time() < until_s:
            pass
    assert max(loop for loop, _ in shares) > 0
