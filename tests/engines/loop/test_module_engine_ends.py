"""Every accepted sequence ends in exactly one terminal event, and what cannot be accepted is refused at once."""

import threading
from typing import Any

import pytest

from engines.sequence import FinishReason
from models.errors import ContextTooLong, EngineUnhealthy, InvalidParameter, QueueFull, StepFailed, UnknownModel

LONG = {"max_tokens": 100, "ignore_eos": True}


def running(make_engine: Any, **settings: Any) -> Any:
    fake = make_engine(**settings)
    fake.load_by_hand()
    return fake


def test_sequence_ends_by_length(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("a", max_tokens=5, ignore_eos=True)
    fake.step_until_idle()
    finish = fake.finish("a")
    assert (finish.reason, finish.stop, finish.error) == (FinishReason.LENGTH, None, None)
    assert (finish.usage.num_prompt_tokens, finish.usage.num_completion_tokens) == (3, 5)
    timings = finish.timings
    assert timings.queued_s <= timings.admitted_s <= timings.first_token_s <= timings.finished_s


def test_sequence_ends_by_eos_and_does_not_show_it(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("a", max_tokens=20, logit_bias={2: 100.0})
    fake.step_until_idle()
    assert fake.finish("a").reason is FinishReason.STOP
    assert (fake.text("a"), fake.tokens("a")) == ("", [])


def test_sequence_does_not_end_by_eos_before_its_least_length(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("a", max_tokens=20, min_tokens=7, logit_bias={2: 100.0})
    fake.step_until_idle()
    assert fake.finish("a").reason is FinishReason.STOP
    assert len(fake.tokens("a")) == 7
    assert 2 not in fake.tokens("a")


def test_sequence_ends_by_a_stop_token(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("free", **LONG)
    fake.step_until_idle()
    stop = fake.tokens("free")[4]
    fake.submit("a", stop_token_ids=frozenset({stop}), **LONG)
    fake.step_until_idle()
    assert fake.finish("a").reason is FinishReason.STOP
    assert fake.tokens("a") == fake.tokens("free")[: fake.tokens("free").index(stop)]


def test_sequence_ends_by_a_stop_string_which_it_does_not_show(make_engine: Any) -> None:
    fake = running(make_engine)
    bias = dict.fromkeys(fake.student.tokenizer.encode("the"), 100.0)
    fake.submit("free", logit_bias=bias, **LONG)
    fake.step_until_idle()
    text = fake.text("free")
    stop = text[7:11]
    fake.submit("a", stop=(stop,), logit_bias=bias, **LONG)
    fake.step_until_idle()
    finish = fake.finish("a")
    assert (finish.reason, finish.stop) == (FinishReason.STOP, stop)
    assert fake.text("a") == text[: text.index(stop)]


def test_sequence_at_the_end_of_the_context_ends_by_length(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("a", [5] * 180, max_tokens=12, ignore_eos=True)
    fake.step_until_idle()
    assert fake.finish("a").usage.num_completion_tokens == 12


def test_abort_of_a_running_sequence_frees_everything_within_one_step(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("a", **LONG)
    fake.engine.step()
    assert fake.engine.status().kv_used_bytes > 0
    fake.engine.abort("a")
    fake.engine.step()
    status = fake.engine.status()
    assert (status.num_running, status.num_waiting, status.kv_used_bytes) == (0, 0, 0)
    assert fake.finish("a").reason is FinishReason.ABORT


def test_abort_of_a_waiting_sequence_ends_it(make_engine: Any) -> None:
    fake = running(make_engine, max_running=1)
    fake.submit("a", **LONG)
    fake.submit("b", **LONG)
    fake.engine.step()
    assert fake.engine.status().num_waiting == 1
    fake.engine.abort("b")
    fake.engine.step()
    finish = fake.finish("b")
    assert (finish.reason, finish.timings.admitted_s) == (FinishReason.ABORT, None)
    fake.step_until_idle()
    assert fake.finish("a").reason is FinishReason.LENGTH


def test_abort_of_unknown_and_finished_sequences_is_ignored(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("a", max_tokens=1)
    fake.step_until_idle()
    fake.engine.abort("a")
    fake.engine.abort("nobody")
    fake.step_until_idle()
    fake.finish("a")
    assert set(fake.events) == {"a"}


def test_failed_step_ends_its_sequences_only_and_the_engine_serves_on(make_engine: Any) -> None:
    fake = running(make_engine, max_running=1)
    fake.submit("a", **LONG)
    fake.submit("b", max_tokens=4, ignore_eos=True)
    fake.engine.step()
    fake.runner.fail_next = 1
    fake.step_until_idle()
    assert isinstance(fake.finish("a").error, StepFailed)
    assert fake.finish("a").reason is FinishReason.ERROR
    assert fake.finish("b").reason is FinishReason.LENGTH
    assert fake.tokens("b") == fake.alone(fake.request("b", (5, 6, 7), "full", max_tokens=4, ignore_eos=True))
    status = fake.engine.status()
    assert (status.is_healthy, status.num_failed_steps, status.kv_used_bytes) == (True, 1, 0)


class Panic(BaseException):
    """As the tokenizer's and the grammar's Rust libraries raise: no Exception."""


def test_panic_in_a_step_ends_its_sequences_only(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("a", **LONG)

    def panic() -> None:
        fake.runner.on_forward = lambda: None
        raise Panic("index out of range")

    fake.runner.on_forward = panic
    fake.step_until_idle()
    assert isinstance(fake.finish("a").error, StepFailed)
    fake.submit("b", max_tokens=4)
    fake.step_until_idle()
    assert fake.finish("b").error is None


def test_failed_move_also_ends_the_sequence_that_was_only_moved(make_engine: Any) -> None:
    fake = running(make_engine, step_tokens=20, busy_step_tokens=4)
    fake.submit("stream", (5,), "knowledge", **LONG)
    fake.engine.step()
    fake.submit("prompt", range(3, 60), "knowledge", max_tokens=2)
    fake.engine.step()
    fake.submit("other", range(3, 60), "knowledge", max_tokens=2)
    fake.engine.step()
    fake.runner.move_slot = _raise
    fake.submit("deep", (5, 6), "full", max_tokens=2)
    fake.engine.step()
    assert {id for id in fake.events if any(event.finish for event in fake.events[id])} == {"stream", "prompt", "deep"}
    del fake.runner.move_slot
    fake.step_until_idle()
    assert fake.tokens("other") == fake.alone(fake.request("other", range(3, 60), "knowledge", max_tokens=2))


def _raise(*_: object) -> None:
    raise RuntimeError("no")


def test_failed_restore_lets_go_of_all_cached_blocks(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("first", range(3, 80), max_tokens=2)
    fake.step_until_idle()
    fake.runner.write_block = _raise
    for id in ("a", "b"):
        fake.submit(id, range(3, 80), max_tokens=2)
    fake.step_until_idle()
    assert all(fake.finish(id).reason is FinishReason.ERROR for id in ("a", "b"))
    assert all(entry.num_holders == 0 for entry in fake.engine._cache._entries.values())


def test_logits_that_are_not_finite_fail_the_step(make_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    fake = running(make_engine)
    forward = fake.runner.forward
    fake.runner.forward = lambda step: forward(step) * float("nan")
    fake.submit("a")
    fake.step_until_idle()
    assert isinstance(fake.finish("a").error, StepFailed)
    assert "not finite" in caplog.text


def test_success_between_failures_keeps_the_engine_healthy(make_engine: Any) -> None:
    fake = running(make_engine)
    for id in ("a", "b", "c"):
        fake.runner.fail_next = 1
        fake.submit(id)
        fake.step_until_idle()
        fake.submit(f"good-{id}", max_tokens=2)
        fake.step_until_idle()
        assert fake.finish(f"good-{id}").error is None
    assert fake.engine.status().is_healthy


def test_two_failures_in_a_row_make_it_unhealthy_and_everyone_is_told(make_engine: Any) -> None:
    fake = running(make_engine, max_running=1)
    for id in ("a", "b", "c", "d"):
        fake.submit(id)
    fake.runner.fail_next = 2
    fake.step_until_idle()
    errors = [type(fake.finish(id).error) for id in ("a", "b", "c", "d")]
    assert errors == [StepFailed, StepFailed, EngineUnhealthy, EngineUnhealthy]
    status = fake.engine.status()
    assert not status.is_healthy
    assert not status.is_ready
    with pytest.raises(EngineUnhealthy, match="in a row failed"):
        fake.submit("e")


INSIDES = "[ONNXRuntimeError] /srv/models/tiny/reasoning.onnx"


def test_failures_are_told_without_the_engine_s_insides(make_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Clients get fixed sentences; the log has the cause and the sequences, and the status has the cause."""
    fake = running(make_engine, max_running=1)

    def fail() -> None:
        raise RuntimeError(INSIDES)

    fake.runner.on_forward = fail
    for id in ("a", "b", "c"):
        fake.submit(id)
    fake.step_until_idle()
    with pytest.raises(EngineUnhealthy) as refusal:
        fake.submit("d")
    status = fake.engine.status()
    told = [str(fake.finish(id).error) for id in ("a", "b", "c")]
    assert told[0] == "a forward pass failed; the server's log has the details"
    assert not any("srv" in text for text in (*told, str(refusal.value), status.error))
    assert status.error_detail == f"2 forward passes in a row failed: RuntimeError('{INSIDES}')"
    assert "step failed student=fake sequences=['a']" in caplog.text
    assert "sequences=['c']" in caplog.text
    assert INSIDES in caplog.text


def test_failure_of_the_engine_s_thread_is_told_without_its_insides(make_engine: Any) -> None:
    fake = make_engine()

    def fail(*_: object) -> None:
        raise RuntimeError(INSIDES)

    fake.runner.read_block = fail
    fake.start()
    fake.submit("a", range(3, 80), max_tokens=2)
    assert str(fake.finish("a").error) == "the engine failed; the server's log has the details"
    assert INSIDES in (fake.engine.status().error_detail or "")


def test_runner_that_cannot_even_give_blocks_back_leaves_nobody_waiting(make_engine: Any) -> None:
    fake = make_engine()
    fake.runner.read_block = _raise
    fake.start()
    fake.submit("a", range(3, 80), max_tokens=2)
    assert isinstance(fake.finish("a").error, EngineUnhealthy)
    assert not fake.engine.status().is_healthy


def test_submit_refuses_what_could_never_run(make_engine: Any) -> None:
    fake = make_engine(kv_bytes=16 * 24)
    with pytest.raises(UnknownModel, match="has no path 'nowhere'"):
        fake.submit("a", path="nowhere")
    with pytest.raises(InvalidParameter, match="empty"):
        fake.submit("a", [])
    with pytest.raises(ContextTooLong, match="context of 192"):
        fake.submit("a", [5] * 190, max_tokens=3)
    with pytest.raises(ContextTooLong, match="raise kv_bytes"):
        fake.submit("a", [5] * 10, max_tokens=7)
    fake.submit("a", [5] * 10, max_tokens=6)


def test_submit_refuses_an_id_that_lives_and_takes_it_again_later(make_engine: Any) -> None:
    fake = running(make_engine)
    fake.submit("a", max_tokens=2)
    with pytest.raises(InvalidParameter, match="'a' is running already"):
        fake.submit("a")
    fake.step_until_idle()
    fake.submit("a", max_tokens=2)


def test_submit_refuses_more_than_may_run_and_wait(make_engine: Any) -> None:
    fake = running(make_engine, max_running=1, max_waiting=2)
    for id in ("a", "b", "c"):
        fake.submit(id, max_tokens=2)
    with pytest.raises(QueueFull, match="3 requests") as caught:
        fake.submit("d")
    assert caught.value.retry_after_s
    fake.step_until_idle()
    fake.submit("d")


def test_stop_with_grace_lets_everyone_finish(make_engine: Any) -> None:
    fake = make_engine(max_running=1)
    fake.start()
    for id in ("a", "b"):
        fake.submit(id, **LONG)
    fake.engine.stop(20)
    assert [fake.finish(id).reason for id in ("a", "b")] == [FinishReason.LENGTH] * 2
    with pytest.raises(EngineUnhealthy, match="shutting down"):
        fake.submit("c")


def test_stop_without_grace_aborts_the_running_and_the_waiting(make_engine: Any) -> None:
    fake = make_engine(max_running=1)
    stepped, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        stepped.set()
        go_on.wait(20)

    fake.runner.on_forward = hold
    fake.start()
    for id in ("a", "b"):
        fake.submit(id, **LONG)
    assert stepped.wait(20)
    fake.submit("late", **LONG)
    stopper = threading.Thread(target=fake.engine.stop, args=(0,))
    stopper.start()
    while fake.engine._living.abort_at_s is None:
        pass
    go_on.set()
    stopper.join(20)
    assert [fake.finish(id).reason for id in ("a", "b", "late")] == [FinishReason.ABORT] * 3
    assert fake.engine.status().kv_used_bytes == 0


def test_stop_while_others_submit_leaves_nobody_waiting(make_engine: Any) -> None:
    for _ in range(5):
        fake = make_engine()
        fake.start()
        accepted: list[str] = []
        started = threading.Event()

        def submit(fake: Any = fake, accepted: list[str] = accepted, started: threading.Event = started) -> None:
            for number in range(1000):
                try:
                    fake.submit(f"s{number}", **LONG)
                except EngineUnhealthy:
                    return
                except QueueFull:
                    continue
                accepted.append(f"s{number}")
                started.set()

        thread = threading.Thread(target=submit)
        thread.start()
        assert started.wait(20)
        fake.engine.stop(0)
        thread.join(20)
        for id in accepted:
            fake.finish(id)


def test_a_slot_that_cannot_be_freed_keeps_no_other_from_its_end(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = running(make_engine)
    for name in ("a", "b", "c"):
        fake.submit(name, **LONG)
    fake.engine.step()

    def release(slot: int, num_tokens: int) -> None:
        raise RuntimeError("no such slot")

    monkeypatch.setattr(fake.runner, "release_slot", release)
    fake.engine._end_all(FinishReason.ABORT, None)
    fake.engine._flush()
    assert [fake.finish(name).reason for name in ("a", "b", "c")] == [FinishReason.ABORT] * 3
