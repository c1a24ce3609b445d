"""Between the result cache and the streams of answers: one request's seat in a generation that others may share."""

import asyncio
import math

from router.cache import CacheUse, Outcome, ResultCache
from router.cache_entry import Entry, replay
from router.decision import Target
from router.similar import Question
from server.bridge import EventStream


class Seat:
    """A request's share in a generation. Owned by the loop; whoever has one closes it."""

    def __init__(
        self, cache: ResultCache, key: str, num_sequences: int, use: CacheUse, question: Question | None = None
    ) -> None:
        self._cache = cache
        self._use = use
        self._flight = cache.enter(key, num_sequences, use)
        self._flight.question = question
        self._stream: EventStream | None = None
        self._is_given_back = False

    @property
    def boarding(self) -> asyncio.Lock:
        """Held while finding out how to get the answer: one request of those that are the same does so."""
        return self._flight.boarding

    @property
    def target(self) -> Target | None:
        """Where the generation really runs; None while there is none to join."""
        return self._flight.target

    @property
    def similarity(self) -> float | None:
        """How near the question is whose answer `find` found; None where it is the same."""
        return self._flight.similarity

    async def find(self) -> Entry | None:
        """An answer that was kept."""
        return await self._cache.find(self._flight, self._use)

    def lead(self, running: EventStream, target: Target) -> EventStream:
        """Share what has just begun; from now on it is no longer the caller's to close."""
        self._flight.take_off(target, running.close, self._cache.land)
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
        """Give the seat back; the last one ends the generation. May come again."""
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


def cache_headers(outcome: Outcome, age_s: float | None, similarity: float | None) -> list[tuple[bytes, bytes]]:
    """Source: RFC 9111, section 5.1: age in whole seconds, of what was kept."""
    headers = [(b"x-fenhe-cache", outcome.value.encode())]
    if similarity is not None:
        headers.append((b"x-fenhe-similarity", f"{similarity:.3f}".encode()))
    if age_s is not None:
        headers.append((b"age", str(math.floor(age_s)).encode()))
    return headers
