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
        self._is_given_back = False

    @property
    def target(self) -> Target | None:
        """Where the generation really runs; None while there is none to join."""
        return self._flight.target

    @contextlib.asynccontextmanager
    async def turn_to_lead(self) -> AsyncIterator[None]:
        """One of the requests that share the generation queues for all; should it fail or leave, the next one does."""
        flight = self._flight
        async with flight.turn_to_lead:
            if not flight.is_open:
                flight.deadline_s = self._deadline_s
            try:
                yield
            except BaseException:
                flight.lookup.is_done = False  # it may have queued for long, so the next one looks again
                raise

    async def find(self) -> Found | None:
        """An answer that was kept, while there is no generation to join."""
        return None if self._flight.is_open else await self._cache.find(self._flight, self._use, self._question)

    def lead(self, running: EventStream, target: Target) -> EventStream:
        """Share what has just started; the caller no longer closes it."""
        self._flight.question = self._question
        self._flight.start(target, running.close, self._cache.finish)
        running.divert(self._flight.push)
        return self.join()

    def join(self) -> EventStream:
        """All events there were, and those to come."""
        stream = self._stream = EventStream(self, self._flight.num_sequences)
        self._flight.join(stream)
        return stream

    def forget(self, stream: EventStream) -> None:
        self._flight.leave(stream)

    def close(self) -> None:
        """Give the share back, once; the last one ends the generation."""
        if self._is_given_back:
            return
        self._is_given_back = True
        if self._stream is not None:
            self.forget(self._stream)
        self._cache.flights.leave(self._flight)


class Kept:
    """Where the events of a kept answer come from: there is nothing to stop."""

    def forget(self, stream: EventStream) -> None:
        pass


def stream_of(entry: Entry) -> EventStream:
    """A kept answer as an engine would have sent it, at once."""
    stream = EventStream(Kept(), len(entry.choices))
    for index, event in replay(entry):
        stream.push(index, event)
    return stream
