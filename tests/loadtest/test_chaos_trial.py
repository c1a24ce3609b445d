"""A trial measures again what may be noise, and not what cannot be."""

from collections import Counter
from typing import Any, cast

import pytest

from loadtest.chaos import trial as trial_module
from loadtest.chaos.attack import Attack, Observation, Target, only
from loadtest.chaos.trial import Trial, rest
from loadtest.chaos.verdict import MIB
from loadtest.served import ServedProcess
from loadtest.watcher import Watcher


class Server:
    """Uses as much memory as it is told, one figure after the other, and the last one from then on."""

    def __init__(self, *mib: int) -> None:
        self._mib = list(mib)

    def resident_bytes(self) -> int:
        return (self._mib.pop(0) if len(self._mib) > 1 else self._mib[0]) * MIB


class Waits:
    """A watcher that saw these longest waits; of what it is asked for before an attack it says nothing."""

    def __init__(self, *longest_ms: float) -> None:
        self._longest_ms = iter(longest_ms)
        self.num_taken = 0

    def take(self) -> dict[str, Any]:
        self.num_taken += 1
        longest = 0.0 if self.num_taken % 2 else next(self._longest_ms)
        return {"longest_ms": longest, "failures": []}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(trial_module, "IDLE_S", 0.0)
    monkeypatch.setattr(trial_module, "cached_bytes", lambda url: 0)


def attack() -> Attack:
    seen = Observation(outcomes=Counter(["200"]))
    return Attack(name="x", expected="", run=lambda target: seen, rules=(only("200"),))


def trial_of(server: Server, waits: Waits) -> Trial:
    return Trial(
        server=cast(ServedProcess, server),
        target=Target(url="http://127.0.0.1:9"),
        watcher=cast(Watcher, waits),
        control_ms=4.0,
    )


def test_gap_that_does_not_come_back_was_noise() -> None:
    waits = Waits(120, 5, 30)  # the attack, the control again, the attack again
    row = trial_of(Server(100), waits).run(attack())
    assert row.verdict == "ok"
    assert waits.num_taken == 6


def test_gap_that_comes_back_fails() -> None:
    row = trial_of(Server(100), Waits(120, 5, 110, 5, 130)).run(attack())
    assert row.problems == ("the loop stood still for 110 ms, 22 times the idle control",)


def test_gap_that_no_machine_makes_is_not_measured_again() -> None:
    waits = Waits(1900)
    assert trial_of(Server(100), waits).run(attack()).verdict == "FAIL"
    assert waits.num_taken == 2


def test_gap_of_a_busy_machine_is_compared_with_its_control() -> None:
    assert trial_of(Server(100), Waits(120, 60, 110, 60, 130)).run(attack()).verdict == "ok"


def test_memory_that_stays_fails() -> None:
    assert trial_of(Server(100, 100, 150), Waits(1)).run(attack()).problems[0].startswith("memory stays: +50%")
    assert trial_of(Server(100, 100, 105), Waits(1)).run(attack()).verdict == "ok"


def test_memory_of_caches_may_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([10 * MIB, 55 * MIB])
    monkeypatch.setattr(trial_module, "cached_bytes", lambda url: next(held))
    row = trial_of(Server(100, 100, 150), Waits(1)).run(attack())
    assert row.memory is not None
    assert (row.memory.cached_before, row.memory.cached_after) == (10 * MIB, 55 * MIB)
    assert row.verdict == "ok"


def test_rest_ends_when_memory_has_gone_back() -> None:
    rest(cast(ServedProcess, Server(100, 100, 100, 90)))
