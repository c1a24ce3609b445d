"""Between the engine's thread and the loop: every event reaches its own stream, and nothing is left behind."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from engines.contract import EngineStatus, Publish
from engines.sequence import Finish, FinishReason, GenerationRequest, SamplingParams, SequenceEvent, SequenceState
from models.errors import QueueFull
from server.students.event_bridge import Bridge, ClientGone, EventStream, Used
from tests.router.flights import end, text


class FakeEngine:
    """Accepts sequences and publishes nothing by itself; refuses from the `num_taken`th sequence on."""

    def __init__(self, num_taken: int = 9) -> None:
        self.num_taken = num_taken
        self.num_starts = 0
        self.submitted: list[str] = []
        self.aborted: list[str] = []

    def start(self, publish: Publish) -> None:
        self.num_starts += 1

    def submit(self, request: GenerationRequest) -> None:
        if len(self.submitted) == self.num_taken:
            raise QueueFull("full")
        self.submitted.append(request.id)

    def abort(self, sequence_id: str) -> None:
        self.aborted.append(sequence_id)

    def status(self) -> EngineStatus:
        raise NotImplementedError

    def sequences(self, limit_s: float) -> list[SequenceState]:
        return []

    def audit(self, limit_s: float) -> list[str]:
        return []

    def stop(self, grace_s: float) -> None: ...


class Watcher:
    def __init__(self) -> None:
        self.num_gaps = 0
        self.finished: list[str] = []

    def observe_gap(self, seconds: float) -> None:
        self.num_gaps += 1

    def observe_finish(self, request: GenerationRequest, finish: Finish) -> None:
        self.finished.append(request.id)


def requests(*ids: str) -> list[GenerationRequest]:
    sampling = SamplingParams(max_tokens=4)
    return [GenerationRequest(id=id, prompt_token_ids=(1,), path="full", sampling=sampling) for id in ids]


def said(id: str, words: str = "", finish: Finish | None = None) -> SequenceEvent:
    return SequenceEvent(sequence_id=id, text=words, token_ids=(1,), finish=finish)


ENDED = end().finish


def make_bridge(engine: FakeEngine, *observers: Watcher) -> Bridge:
    bridge = Bridge(engine, *observers)
    bridge.attach()
    return bridge


async def publish(bridge: Bridge, *events: SequenceEvent) -> None:
    """Publish from another thread, as an engine does, and wait until the loop has the events."""
    await asyncio.to_thread(bridge.publish, events)
    await asyncio.sleep(0)


async def test_events_of_a_step_go_to_their_own_streams() -> None:
    bridge = make_bridge(FakeEngine())
    one, two = bridge.open(requests("a-0", "a-1")), bridge.open(requests("b-0"))
    await publish(bridge, said("a-1", "x"), said("b-0", "y"), said("a-0", "z"), said("gone-0", "w"))
    assert [(index, event.text) for index, event in await one.take()] == [(1, "x"), (0, "z")]
    assert [(index, event.text) for index, event in await two.take()] == [(0, "y")]


async def test_engine_is_started_once() -> None:
    engine = FakeEngine()
    bridge = Bridge(engine)
    bridge.start_engine()
    bridge.attach()
    assert engine.num_starts == 1


async def test_request_that_is_refused_halfway_leaves_nothing_behind() -> None:
    engine = FakeEngine(num_taken=2)
    bridge = make_bridge(engine)
    with pytest.raises(QueueFull):
        bridge.open(requests("a-0", "a-1", "a-2"))
    assert engine.aborted == ["a-0", "a-1"]
    assert bridge.num_streams == 0


async def test_closed_stream_aborts_only_what_still_lives() -> None:
    engine = FakeEngine()
    bridge = make_bridge(engine)
    stream = bridge.open(requests("a-0", "a-1"))
    await publish(bridge, said("a-0", "x", ENDED))
    stream.close()
    assert engine.aborted == ["a-1"]
    assert bridge.num_streams == 0
    assert bridge.has_sequences("a")
    await publish(bridge, said("a-1", "late", end(FinishReason.ABORT).finish))
    assert not bridge.has_sequences("a")


async def test_sequences_are_known_by_the_key_of_their_request() -> None:
    bridge = make_bridge(FakeEngine())
    bridge.open(requests("a-b-0"))
    assert bridge.has_sequences("a-b")
    assert not bridge.has_sequences("a")


async def test_observers_are_told_gaps_and_ends() -> None:
    watcher = Watcher()
    bridge = make_bridge(FakeEngine(), watcher)
    bridge.open(requests("a-0"))
    await publish(bridge, said("a-0"))
    assert watcher.num_gaps == 0
    await publish(bridge, said("a-0"))
    await publish(bridge, said("a-0", finish=ENDED))
    assert (watcher.num_gaps, watcher.finished) == (2, ["a-0"])


async def test_what_was_used_is_told_when_the_last_sequence_has_ended() -> None:
    bridge = make_bridge(FakeEngine())
    stream = bridge.open(requests("a-0", "a-1"))
    used: list[Used] = []
    stream.when_over(used.append)
    assert ENDED is not None
    slow = replace(ENDED, timings=replace(ENDED.timings, choosing_s=0.5))
    await publish(bridge, said("a-0", finish=slow))
    stream.close()
    assert used == []
    await publish(bridge, said("a-1", finish=slow))
    assert used == [Used(num_tokens=10, choosing_s=1.0)]


async def test_failure_comes_before_what_is_pending() -> None:
    bridge = make_bridge(FakeEngine())
    stream = bridge.open(requests("a-0"))
    await publish(bridge, said("a-0", "x"))
    stream.fail(ClientGone())
    stream.fail(QueueFull("too late to count"))
    with pytest.raises(ClientGone):
        await stream.take()


async def test_failure_wakes_who_waits() -> None:
    bridge = make_bridge(FakeEngine())
    stream = bridge.open(requests("a-0"))
    waiting = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.fail(ClientGone())
    with pytest.raises(ClientGone):
        await waiting


async def test_diverted_stream_hands_over_what_it_had_and_what_comes() -> None:
    bridge = make_bridge(FakeEngine())
    stream = bridge.open(requests("a-0"))
    stream.push(0, text("one"))
    taken: list[str] = []
    stream.divert(lambda index, event: taken.append(event.text))
    stream.push(0, text("two"))
    assert taken == ["one", "two"]


async def test_events_after_the_end_of_the_loop_are_dropped() -> None:
    bridges: list[Bridge] = []

    async def attach() -> None:
        bridges.append(make_bridge(FakeEngine()))

    await asyncio.to_thread(asyncio.run, attach())
    bridges[0].publish([said("a-0")])


def test_stream_counts_the_sequences_that_have_not_ended() -> None:
    class Nobody:
        def forget(self, stream: EventStream) -> None: ...

    stream = EventStream(Nobody(), 2)
    events: Sequence[SequenceEvent] = (text("x"), end())
    for event in events:
        stream.push(0, event)
    assert stream.num_unfinished == 1
