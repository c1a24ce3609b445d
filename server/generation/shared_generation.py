"""Between the result cache and the streams of answers: one request's share in a generation."""

import contextlib
from collections.abc import AsyncIterator

from router.cache.entry import Entry, replay
from router.cache.result_cache import CacheUse, ResultCache
from router.cache.similar import Question
from router.cache.single_flight import Found
from router.decision import Target
from server.students.admission_gate import Terms
from server.students.event_bridge import EventStream


class Share:
    """One request's share in a generation. Owned by the loop; whoever has one closes it."""

    def __init__(
        self, cache: ResultCache, key: str, num_sequences: int, use: CacheUse, terms: Terms, question: Question | None
    ) -> None:
        self._cache = cache
        self._use = use
        self._deadline_s = terms.deadline_s
        self._question = question
        self._flight = cache.enter(key, num_sequences, use, terms.priority, terms.deadline_s)
        self._stream: EventStream | None = None
        self._is_closed = False

    @property
    def target(self) -> Target | None:
        """Where the generation really runs; None while there is none to join."""
        return self._flight.target

    @contextlib.asynccontextmanager
    async def turn_to_lead(self) -> AsyncIterator[None]:
        """One request queues for all that share the generation; if it fails or is cancelled, the next one does."""
        flight = self._flight
        async with flight.turn_to_lead:
            if not flight.is_open:
                flight.deadline_s = self._deadline_s
            try:
                yield
            except BaseException:
                flight.lookup.is_done = False  # it may have queued for long, so the next one looks in the cache again
                raise

    async def find(self) -> Found | None:
        """A cached answer, unless there is a generation to join."""
        return None if self._flight.is_open else await self._cache.find(self._flight, self._use, self._question)

    def lead(self, running: EventStream, target: Target) -> EventStream:
        """Share a generation that has just started; from now on the last share closes it, not the caller."""
        self._flight.question = self._question
        self._flight.start(target, running.close, self._cache.finish)
        running.divert(self._flight.push)
        return self.join()

    def join(self) -> EventStream:
        """A stream of all events of the generation, from the first one on."""
        stream = self._stream = EventStream(self, self._flight.num_sequences)
        self._flight.join(stream)
        return stream

    def forget(self, stream: EventStream) -> None:
        self._flight.leave(stream)

    def close(self) -> None:
        """Give up the share, once; giving up the last one ends the generation."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._stream is not None:
            self.forget(self._stream)
        self._cache.flights.leave(self._flight)


class Kept:
    """The source of a cached answer's events: there is nothing to stop."""

    def forget(self, stream: EventStream) -> None:
        pass


def stream_of(entry: Entry) -> EventStream:
    """The events of a cached answer as an engine would have sent them, all at once."""
    stream = EventStream(Kept(), len(entry.choices))
    for index, event in replay(entry):
        stream.push(index, event)
    return stream
