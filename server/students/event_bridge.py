"""Between the engine's thread and the event loop: one wake-up per step, one stream of events per request.

The engine calls `publish` on its own thread; everything else here runs on the loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engines.contract import Engine
from engines.sequence import Finish, GenerationRequest, SequenceEvent
from server.threads import settle

logger = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client left, and nobody waits for the answer any more."""


class Observer(Protocol):
    """Called at most once per event, on the loop; must be quick."""

    def observe_gap(self, seconds: float) -> None: ...

    def observe_finish(self, request: GenerationRequest, finish: Finish) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Living:
    """A sequence the engine has accepted and not finished. `last_event_s` is None before its first token."""

    request: GenerationRequest
    stream: "EventStream"
    index: int
    last_event_s: float | None = None


@dataclass(slots=True, eq=False)
class Background:
    """A sequence in the background and its events so far."""

    ended: asyncio.Future[None]
    events: list[SequenceEvent] = field(default_factory=list)
    has_ended: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class Used:
    """What all sequences of a request took together: tokens, prompts included, and time to choose them beyond the plain
    way (`Timings.choosing_s`)."""

    num_tokens: int = 0
    choosing_s: float = 0.0

    def with_end(self, finish: Finish) -> "Used":
        usage = finish.usage
        return Used(
            num_tokens=self.num_tokens + usage.num_prompt_tokens + usage.num_completion_tokens,
            choosing_s=self.choosing_s + finish.timings.choosing_s,
        )


class Source(Protocol):
    """Where a stream's events come from."""

    def forget(self, stream: "EventStream") -> None:
        """Nobody wants the stream's events any more."""
        ...


class EventStream:
    """The events of all sequences of one HTTP request, in order. One consumer; owned by the loop."""

    def __init__(self, source: Source, num_sequences: int) -> None:
        self._source = source
        self._divert: Callable[[int, SequenceEvent], None] | None = None
        self._pending: list[tuple[int, SequenceEvent]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._num_living = num_sequences
        self._used = Used()
        self._when_over: Callable[[Used], None] | None = None
        self._when_finished: Callable[[Finish], None] | None = None
        self.watcher: Callable[[int, SequenceEvent], None] | None = None
        """Called with every event as it comes, whether or not anybody waits for it."""
        self.num_unfinished = num_sequences
        self.sequence_ids: list[str] = []

    def push(self, index: int, event: SequenceEvent) -> None:
        if event.finish is not None:
            self.num_unfinished -= 1
        if self._divert is not None:
            self._divert(index, event)
            return
        self._pending.append((index, event))
        self._wake()

    def divert(self, push: Callable[[int, SequenceEvent], None]) -> None:
        """Hand every event to `push` as it comes; nobody takes from this stream."""
        self._divert = push
        pending, self._pending = self._pending, []
        for index, event in pending:
            push(index, event)

    def when_over(self, callback: Callable[[Used], None]) -> None:
        """Call back once the engine has ended all sequences. Those of a closed stream live on until their abort is
        done."""
        self._when_over = callback

    def when_finished(self, callback: Callable[[Finish], None]) -> None:
        """Call back with the end of each sequence, whether or not anybody waits for it."""
        self._when_finished = callback

    def count_end(self, finish: Finish) -> None:
        """Note that the engine has ended one of the sequences, whether or not anybody waits for it."""
        self._num_living -= 1
        if self._when_finished is not None:
            self._when_finished(finish)
        self._used = self._used.with_end(finish)
        if self._num_living == 0 and self._when_over is not None:
            self._when_over(self._used)

    def fail(self, failure: Exception) -> None:
        """Make the consumer's next `take` raise, whatever is pending."""
        if self._failure is None:
            self._failure = failure
        self._wake()

    async def first(self) -> SequenceEvent:
        """Wait for the first event, and leave it for `take`. Raises: what `fail` was given."""
        if not self._pending:
            self._pending = [*await self.take(), *self._pending]
        return self._pending[0][1]

    async def take(self) -> list[tuple[int, SequenceEvent]]:
        """Wait until something came, and take all of it, as (choice, event).

        Raises: what `fail` was given.
        """
        if not self._pending and self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure
        taken, self._pending = self._pending, []
        return taken

    def close(self) -> None:
        """Abort whatever has not finished. Nothing reaches the stream afterwards."""
        self._source.forget(self)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Bridge:
    """Submits sequences and brings their events to the stream they belong to."""

    def __init__(self, engine: Engine, *observers: Observer) -> None:
        self._engine = engine
        self._observers = observers
        self._living: dict[str, Living] = {}
        self._background: dict[str, Background] = {}
        self._streams: set[EventStream] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_started = False

    def start_engine(self) -> None:
        """Let the engine load, perhaps before there is a loop: nothing is published until something is submitted."""
        if not self._is_started:
            self._is_started = True
            self._engine.start(self.publish)

    def attach(self) -> None:
        """Bring events to the running loop, and start the engine if nobody has."""
        self._loop = asyncio.get_running_loop()
        self.start_engine()

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def has_sequences(self, key: str) -> bool:
        """Whether sequences called `{key}-{index}` are still in the engine, perhaps being aborted."""
        return any(sequence_id.rpartition("-")[0] == key for sequence_id in self._living)

    def open(self, requests: Sequence[GenerationRequest]) -> EventStream:
        """Submit all sequences of a request, or none.

        Raises: what `Engine.submit` raises, after the sequences already submitted were aborted.
        """
        stream = EventStream(self, len(requests))
        self._streams.add(stream)
        try:
            for index, request in enumerate(requests):
                self._submit(stream, index, request)
        except BaseException:
            self.forget(stream)
            raise
        return stream

    def _submit(self, stream: EventStream, index: int, request: GenerationRequest) -> None:
        # The first event may be published at once; the loop delivers it only after this call.
        self._engine.submit(request)
        self._living[request.id] = Living(request=request, stream=stream, index=index)
        stream.sequence_ids.append(request.id)

    async def run_in_background(self, request: GenerationRequest) -> list[SequenceEvent]:
        """All events of a sequence that nobody else sees and no observer counts. Cancelling this aborts it.

        Raises: what `Engine.submit` raises.
        """
        self._engine.submit(request)
        background = self._background[request.id] = Background(asyncio.get_running_loop().create_future())
        try:
            await background.ended
        finally:
            if not background.has_ended:
                self._engine.abort(request.id)
        return background.events

    def forget(self, stream: EventStream) -> None:
        """Abort the living sequences of a stream and drop what still comes for them."""
        self._streams.discard(stream)
        for sequence_id in stream.sequence_ids:
            if sequence_id in self._living:
                self._engine.abort(sequence_id)

    def publish(self, events: Sequence[SequenceEvent]) -> None:
        """Hand one step's events to the loop. Runs on the engine's thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, tuple(events))
        except RuntimeError:  # the loop is closed: the server has ended and nobody waits
            logger.debug("events dropped count=%d", len(events))

    def _deliver(self, events: tuple[SequenceEvent, ...]) -> None:
        now_s = time.monotonic()
        living = self._living
        for event in events:
            entry = living.get(event.sequence_id)
            if entry is None:
                self._note_background(event)
                continue
            if event.token_ids or event.num_chunks:
                if entry.last_event_s is not None:
                    for observer in self._observers:
                        observer.observe_gap(now_s - entry.last_event_s)
                entry.last_event_s = now_s
            if event.finish is not None:
                del living[event.sequence_id]
                for observer in self._observers:
                    observer.observe_finish(entry.request, event.finish)
            if entry.stream in self._streams:
                entry.stream.push(entry.index, event)
            if entry.stream.watcher is not None:
                entry.stream.watcher(entry.index, event)
            if event.finish is not None:
                entry.stream.count_end(event.finish)

    def _note_background(self, event: SequenceEvent) -> None:
        background = self._background.get(event.sequence_id)
        if background is None:
            return
        background.events.append(event)
        if event.finish is not None:
            background.has_ended = True
            del self._background[event.sequence_id]
            settle(background.ended, None)
