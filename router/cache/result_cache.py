"""The result cache: answers kept by what was asked, and one generation for equal requests that come at the same time.

It only ever saves work. A store counts what goes wrong in it, and the request is served without it.
"""

import asyncio
import logging
import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from models.errors import Unavailable
from router.cache.config import CacheConfig
from router.cache.entry import Entry, decode_entry, encode_entry, entry_of
from router.cache.key import key_prefix, path_of
from router.cache.redis_store import RedisStore
from router.cache.similar import Question, SimilarIndex
from router.cache.single_flight import Flight, Flights, Found, Lookup
from router.cache.store import ENTRY_OVERHEAD_BYTES, MemoryStore, Store
from router.decision import Priority
from router.tasks import Task

logger = logging.getLogger(__name__)

LONG_VALUE_BYTES = 32 * 1024
MANY_LOGPROBS = 64
"""Longer answers are read and written in a thread."""

LAST_KEEPING_S = 1.0
"""How long `close` waits for answers that are being stored."""


class Outcome(StrEnum):
    """What the cache did for a request."""

    HIT = "hit"
    JOIN = "join"
    MISS = "miss"
    BYPASS = "bypass"


@dataclass(slots=True, kw_only=True, frozen=True)
class CacheUse:
    """What the cache may do for a request. `max_age_s` None: as old as the store keeps answers."""

    reads: bool = False
    writes: bool = False
    max_age_s: float | None = None

    def takes(self, entry: Entry) -> bool:
        return self.max_age_s is None or entry.age_s <= self.max_age_s


BYPASS = CacheUse()


class ResultCache:
    """Owned by the loop."""

    def __init__(self, config: CacheConfig, store: Store) -> None:
        self._config = config
        self._keeping: set[asyncio.Task[None]] = set()
        self.store = store
        self.flights = Flights(config.max_joined)
        self.outcomes: Counter[Outcome] = Counter()
        self.num_stored = 0
        self.num_too_large = 0
        self.num_unreadable = 0
        self.num_similar = 0
        self._similar = SimilarIndex(config.max_questions)

    @property
    def is_enabled(self) -> bool:
        return self._config.enabled

    def threshold_of(self, task: Task) -> float | None:
        """How similar a question of this task must be to an answered one; None when only the same one counts."""
        return self._config.semantic.get(task)

    def enter(
        self,
        key: str,
        num_sequences: int,
        use: CacheUse,
        priority: Priority = Priority.NORMAL,
        deadline_s: float = math.inf,
    ) -> Flight:
        """Take a share in the flight of this key, or in a new one for a request that must not get another's answer."""
        if not use.reads:
            return self.flights.enter_alone(key, num_sequences)
        return self.flights.enter(key, num_sequences, priority, deadline_s)

    async def find(self, flight: Flight, use: CacheUse, question: Question | None = None) -> Found | None:
        """A kept answer for a flight that has not started; the store is asked once for all who share the flight. With a
        `question` it may also be the answer to one that says nearly the same."""
        if not use.reads:
            return None
        lookup = flight.lookup
        async with lookup.lock:
            await self._look_up(lookup, flight, question)
        if lookup.same is not None:
            return Found(lookup.same) if self._suits(lookup.same, use) else None
        similar = lookup.similar
        if question is None or similar is None or similar.similarity is None:
            return None
        return similar if similar.similarity >= question.threshold and self._suits(similar.entry, use) else None

    def _suits(self, entry: Entry, use: CacheUse) -> bool:
        return entry.age_s <= self._config.ttl_s and use.takes(entry)

    async def _look_up(self, lookup: Lookup, flight: Flight, question: Question | None) -> None:
        try:
            if not lookup.is_done:
                lookup.same = await self._read(flight.key, flight.num_sequences)
                lookup.is_done = True
            if lookup.same is None and question is not None and not lookup.is_similar_done:
                lookup.similar = await self._read_similar(question, flight.num_sequences)
                lookup.is_similar_done = True
        except Unavailable:  # the store has counted it; no other request of the flight asks again
            lookup.is_done = lookup.is_similar_done = True

    async def _read_similar(self, question: Question, num_sequences: int) -> Found | None:
        """The most similar question's answer. If that is gone, the next is not tried: no request asks the store more
        than twice.

        Raises: Unavailable when the store cannot tell.
        """
        nearest = self._similar.nearest(question)
        if nearest is None:
            return None
        key, score = nearest
        entry = await self._read(key, num_sequences)
        if entry is None:
            self._similar.forget(question.group, key)
            return None
        return Found(entry, score)

    async def _read(self, key: str, num_sequences: int) -> Entry | None:
        """Raises: Unavailable when the store cannot tell."""
        value = await self.store.get(key)
        if value is None:
            return None
        path = path_of(key)
        if len(value) > LONG_VALUE_BYTES:
            entry = await asyncio.to_thread(decode_entry, value, num_sequences, path)
        else:
            entry = decode_entry(value, num_sequences, path)
        if entry is None:
            self.num_unreadable += 1
            logger.debug("cache value is not an answer key=%s bytes=%d", key, len(value))
        elif entry.age_s > self._config.ttl_s:
            return None
        return entry

    def count(self, outcome: Outcome, found: Found | None) -> None:
        """Count a request, and what it was answered with."""
        self.outcomes[outcome] += 1
        self.num_similar += found is not None and found.similarity is not None

    def finish(self, flight: Flight, is_good: bool) -> None:
        """Keep the answer of a flight that has ended, if it is the answer that its key stands for."""
        entry = entry_of(flight.events, flight.num_sequences) if is_good and flight.is_storable else None
        if entry is None or not _is_what_was_asked(flight, entry):
            self.flights.drop(flight)
            return
        task = asyncio.get_running_loop().create_task(self._keep(flight, entry))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, flight: Flight, entry: Entry) -> None:
        try:
            is_long = entry.num_logprobs > MANY_LOGPROBS
            value = await asyncio.to_thread(encode_entry, entry) if is_long else encode_entry(entry)
            if len(value) + ENTRY_OVERHEAD_BYTES > self._config.max_entry_bytes:
                self.num_too_large += 1
            elif await self.store.put(flight.key, value):
                self.num_stored += 1
                if flight.question is not None:
                    self._similar.add(flight.question, flight.key)
            if not flight.is_storable:  # flushed while it was being stored
                await self.store.flush(flight.key)
        except Unavailable as error:
            logger.warning("an answer may have outlived a flush key=%s error=%s", flight.key, error)
        finally:
            self.flights.drop(flight)

    async def flush(self, prefix: str) -> int:
        """Forget what is kept under keys with this prefix, and keep nothing of what is being generated under them.

        Raises: Unavailable when the store cannot be reached.
        """
        self.flights.invalidate(prefix)
        return await self.store.flush(prefix)

    async def close(self) -> None:
        if self._keeping:
            _, late = await asyncio.wait(self._keeping, timeout=LAST_KEEPING_S)
            for task in late:
                task.cancel()
        await self.store.close()


def _is_what_was_asked(flight: Flight, entry: Entry) -> bool:
    """False for the answer of a fallback, or of a shallower path while the right one was loading."""
    target = flight.target
    assert target is not None
    is_there = flight.key.startswith(key_prefix(target.student, target.path))
    return is_there and all(choice.path == target.path for choice in entry.choices)


def make_result_cache(config: CacheConfig) -> ResultCache:
    """Raises: ConfigError for a Redis that cannot be set up."""
    has_redis = config.enabled and config.url is not None
    store = RedisStore(config) if has_redis else MemoryStore(config.max_bytes, config.ttl_s)
    return ResultCache(config, store)
