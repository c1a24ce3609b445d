"""The audit reports nothing while the bookkeeping is consistent, and names every kind of inconsistency."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from engines.loop import module_engine
from engines.loop.module_engine import ModuleEngine
from engines.scheduling.prefix_cache import BLOCK_TOKENS
from engines.sequence import SequenceStatus
from models.errors import EngineUnhealthy
from tests.engines.loop.test_module_engine import hanging, random_request, random_settings


def busy_engine(make_engine: Any) -> Any:
    """Two sequences running, one of them on a cached prefix, and one waiting."""
    fake = make_engine(max_running=2, prefix_cache_bytes=1 << 20)
    fake.load_by_hand()
    prompt = [9] * (2 * BLOCK_TOKENS + 1)
    fake.submit("first", prompt, max_tokens=2, ignore_eos=True)
    fake.step_until_idle()
    for name in ("a", "b", "c"):
        fake.submit(name, prompt, max_tokens=40, ignore_eos=True)
    fake.engine.step()
    return fake


@pytest.mark.parametrize("seed", range(8))
def test_audit_finds_nothing_wrong_whatever_runs(make_engine: Any, seed: int) -> None:
    rng = random.Random(seed)
    fake = make_engine(**random_settings(rng))
    fake.load_by_hand()
    for number in range(25):
        fake.engine.submit(random_request(rng, number))
    while fake.engine.step():
        if rng.random() < 0.1:
            fake.engine.abort(f"s{rng.randrange(25)}")
        if rng.random() < 0.02:
            fake.runner.fail_next = 1
        assert fake.engine._find_inconsistencies() == []


def test_audit_of_a_running_engine_answers(make_engine: Any) -> None:
    fake = make_engine()
    fake.start()
    fake.submit("a", max_tokens=50, ignore_eos=True)
    assert fake.engine.audit(60.0) == []
    fake.finish("a")
    assert fake.engine.audit(60.0) == []


def test_audit_says_that_the_engine_does_not_answer(make_engine: Any) -> None:
    with hanging(make_engine()) as fake:
        assert fake.engine.audit(0.01) == ["the engine's thread did not answer within 0.01 s"]


def test_audit_nobody_waits_for_any_more_is_not_done(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    with hanging(make_engine()) as fake:
        monkeypatch.setattr(fake.engine, "_find_inconsistencies", lambda: done.append(1))
        assert "did not answer" in fake.engine.audit(0.01)[0]
    fake.finish("held")
    monkeypatch.undo()
    assert fake.engine.audit(20.0) == []
    assert done == []


@pytest.mark.parametrize("was_started", [False, True])
def test_audit_of_an_engine_without_a_thread_is_refused_at_once(make_engine: Any, was_started: bool) -> None:
    fake = make_engine()
    if was_started:
        fake.start()
        fake.engine.stop(0)
    assert fake.engine.audit(60.0) == ["the engine's thread is not running"]
    with pytest.raises(EngineUnhealthy, match="is not running"):
        fake.engine.sequences(60.0)
    assert len(fake.engine._commands) == 0


def test_audit_that_fails_is_told_and_the_engine_serves_on(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = make_engine()
    fake.start()

    def fail(*_: object) -> None:
        raise IndexError("slot 99")

    monkeypatch.setattr(module_engine, "find_inconsistencies", fail)
    monkeypatch.setattr(fake.engine, "_sequence_states", fail)
    assert fake.engine.audit(60.0) == ["the audit failed: IndexError('slot 99')"]
    with pytest.raises(EngineUnhealthy, match="slot 99"):
        fake.engine.sequences(60.0)
    fake.submit("a", max_tokens=2)
    assert fake.finish("a").error is None
    assert fake.engine.status().is_healthy


def _forget(engine: ModuleEngine) -> None:
    engine._living.end("a")


def _take_slot(engine: ModuleEngine) -> None:
    first, second = engine._scheduler.running
    first.slot = second.slot


def _pause(engine: ModuleEngine) -> None:
    engine._scheduler.running[0].status = SequenceStatus.WAITING


def _seat_waiting(engine: ModuleEngine) -> None:
    engine._scheduler.waiting[0].slot = 1


def _lose_sequence(engine: ModuleEngine) -> None:
    engine._scheduler.running.pop()


def _leak_kv(engine: ModuleEngine) -> None:
    engine._kv.used_bytes += 8


def _overfill_kv(engine: ModuleEngine) -> None:
    engine._kv.capacity_bytes = 8


def _miscount_cache(engine: ModuleEngine) -> None:
    engine._cache.used_bytes -= 8


def _keep_hold(engine: ModuleEngine) -> None:
    next(iter(engine._cache._entries.values())).num_holders += 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_forget, "sequences that have ended: ['a']"),
        (_take_slot, "is not in its slot"),
        (_pause, "runs and is waiting"),
        (_seat_waiting, "has slot 1"),
        (_lose_sequence, "2 slots are taken by 1 sequences"),
        (_leak_kv, "bytes of KV are counted"),
        (_overfill_kv, "exceed 8"),
        (_miscount_cache, "bytes of cached prefixes are counted"),
        (_keep_hold, "holders, sequences hold"),
    ],
)
def test_audit_names_what_is_wrong(make_engine: Any, damage: Callable[[ModuleEngine], None], words: str) -> None:
    engine = busy_engine(make_engine).engine
    assert engine._find_inconsistencies() == []
    damage(engine)
    assert words in "; ".join(engine._find_inconsistencies())
