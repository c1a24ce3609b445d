"""Sequences that pause for another tenant: they go on where they were, and what was computed is computed once. The
runner here is exact; a real one rounds KV from a prompt in another order than KV that was written while decoding."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from engines.sequence import FinishReason
from tests.engines.conftest import FakeEngine
from tests.engines.loop.test_module_engine import check_integrity, check_nothing_left

MakeEngine = Callable[..., FakeEngine]
LONG: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True}


def full_engine(make_engine: MakeEngine, **settings: Any) -> FakeEngine:
    """Tenant `a` has all four slots, and its streams have begun."""
    fake = make_engine(max_running=4, **settings)
    fake.load_by_hand()
    for number in range(4):
        fake.submit(f"a{number}", [7 + number] * 10, cache_salt="a", **LONG)
    for _ in range(60):
        fake.engine.step()
    return fake


def run_visitor(fake: FakeEngine, id: str) -> int:
    """Of tenant `b`; returns the number of steps until its first token."""
    fake.submit(id, [3] * 6, cache_salt="b", max_tokens=5, ignore_eos=True)
    num_steps = 0
    while not fake.tokens(id):
        fake.engine.step()
        check_integrity(fake)
        num_steps += 1
    return num_steps


def check_answers(fake: FakeEngine) -> None:
    fake.step_until_idle()
    for number in range(4):
        assert fake.finish(f"a{number}").reason is FinishReason.LENGTH
        request = fake.request("x", [7 + number] * 10, "full", **LONG)
        assert fake.tokens(f"a{number}") == fake.alone(request)
    check_nothing_left(fake)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_visitor_begins_within_steps_and_all_answers_stay_the_same(make_engine: MakeEngine, cache_bytes: int) -> None:
    fake = full_engine(make_engine, prefix_cache_bytes=cache_bytes)
    for number in range(10):
        assert run_visitor(fake, f"visitor{number}") <= 3
        fake.engine.step()
    assert fake.engine.status().num_pauses > 1
    assert fake.engine.status().num_preemptions == 0
    check_answers(fake)


def test_what_a_paused_one_had_computed_comes_back_from_the_cache(make_engine: MakeEngine) -> None:
    """70 tokens: two blocks of 32 come back, the rest is computed again."""
    fake = full_engine(make_engine)
    run_visitor(fake, "visitor")
    (paused,) = [one for one in fake.engine._scheduler.waiting if one.paused_at is not None]
    num_tokens, fake.runner.forward_calls = paused.num_tokens, []
    check_answers(fake)
    again = [chunk for step in fake.runner.forward_calls for chunk in step.prefill if chunk.start >= 32]
    assert 64 < num_tokens < 96
    assert again
    assert min(chunk.start for chunk in again) == 64


def test_kv_that_cannot_be_kept_is_computed_again(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The device fails in the middle of what a pause keeps: no other sequence ends for it."""
    fake = full_engine(make_engine)
    read, calls = fake.runner.read_block, itertools.count()

    def read_once(*arguments: Any) -> Any:
        if next(calls):
            raise RuntimeError("device")
        return read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fake.runner, "read_block", read_once)
        run_visitor(fake, "visitor")
    (paused,) = [one for one in fake.engine._scheduler.waiting if one.paused_at is not None]
    (record,) = [one for one in caplog.records if one.name == "engines.loop.slot_moves"]
    assert record.getMessage() == f"kv of a paused sequence not kept sequence={paused.id}"
    check_answers(fake)


def test_paused_one_can_be_aborted(make_engine: MakeEngine) -> None:
    fake = full_engine(make_engine)
    run_visitor(fake, "visitor")
    (paused,) = [one for one in fake.engine._scheduler.waiting if one.paused_at is not None]
    fake.engine.abort(paused.id)
    fake.step_until_idle()
    assert fake.finish(paused.id).reason is FinishReason.ABORT
    check_nothing_left(fake)


def test_paused_one_is_listed_as_waiting_and_was_admitted_once(make_engine: MakeEngine) -> None:
    fake = full_engine(make_engine)
    before = {one.id: one.admitted_s for one in fake.engine._scheduler.running}
    run_visitor(fake, "visitor")
    waiting = [state for state in fake.engine._sequence_states() if state.slot is None]
    assert [(state.status.value, state.num_completion_tokens > 0) for state in waiting] == [("waiting", True)]
    fake.step_until_idle()
    assert fake.finish(waiting[0].id).timings.admitted_s == before[waiting[0].id]
