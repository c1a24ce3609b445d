"""The result cache: answers kept by what was asked, and requests that are the same at the same time made one.

It only ever saves work. Whatever goes wrong in a store is counted there, and the request is served without it.
"""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from models.errors import Unavailable
from router.cache_config import CacheConfig
from router.cache_entry import Entry, decode_entry, encode_entry, entry_of
from router.cache_key import key_prefix
from router.cache_store import ENTRY_OVERHEAD_BYTES, MemoryStore, Store
from router.redis_store import RedisStore
from router.similar import Question, SimilarIndex
from router.single_flight import Flight, Flights
from router.tasks import Task

logger = logging.getLogger(__name__)

LAST_KEEPING_S = 1.0
"""How long the end waits for answers that are on their way into the store."""


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
        self.num_rubbish = 0
        self.num_similar = 0
        self._similar = SimilarIndex(config.max_questions)

    @property
    def is_enabled(self) -> bool:
        return self._config.enabled

    def threshold_of(self, task: Task) -> float | None:
        """How near a question of this task must be to one that was answered; None: it must be the same."""
        return self._config.semantic.get(task)

    def enter(self, key: str, num_sequences: int, use: CacheUse) -> Flight:
        """Take a seat in the flight of this key; in one's own when the request must not see another's answer."""
        flights = self.flights
        return flights.enter(key, num_sequences) if use.reads else flights.enter_alone(key, num_sequences)

    async def find(self, flight: Flight, use: CacheUse) -> Entry | None:
        """A whole answer for a flight that has not begun. The flight remembers it for those who wait behind."""
        if not use.reads:
            return None
        if flight.found is None:
            flight.found = await self._read(flight.key, flight.num_sequences)
        if flight.found is None and flight.question is not None:
            flight.found, flight.similarity = await self._read_similar(flight, flight.question)
        found = flight.found
        return found if found is not None and use.takes(found) else None

    async def _read_similar(self, flight: Flight, question: Question) -> tuple[Entry | None, float | None]:
        while (nearest := self._similar.nearest(question)) is not None:
            key, score = nearest
            entry = await self._read(key, flight.num_sequences)
            if entry is not None:
                return entry, score
            self._similar.forget(question.group, key)
        return None, None

    async def _read(self, key: str, num_sequences: int) -> Entry | None:
        value = await self.store.get(key)
        if value is None:
            return None
        entry = decode_entry(value, num_sequences)
        if entry is None:
            self.num_rubbish += 1
            logger.debug("cache value is rubbish key=%s bytes=%d", key, len(value))
        elif entry.age_s > self._config.ttl_s:
            return None
        return entry

    def land(self, flight: Flight, is_good: bool) -> None:
        """A flight is over: keep its answer if it is what its key stands for."""
        entry = entry_of(flight.events, flight.num_sequences) if is_good and flight.is_storable else None
        if entry is None or not _is_what_was_asked(flight, entry):
            self.flights.drop(flight)
            return
        task = asyncio.get_running_loop().create_task(self._keep(flight, entry))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, flight: Flight, entry: Entry) -> None:
        try:
            value = encode_entry(entry)
            if len(value) + ENTRY_OVERHEAD_BYTES > self._config.max_entry_bytes:
                self.num_too_large += 1
            elif await self.store.put(flight.key, value):
                self.num_stored += 1
                if flight.question is not None:
                    self._similar.add(flight.question, flight.key)
            if not flight.is_storable:  # flushed while it was on its way
                await self.store.flush(flight.key)
        except Unavailable as error:
            logger.warning("an answer may have outlived a flush key=%s error=%s", flight.key, error)
        finally:
            self.flights.drop(flight)

    async def flush(self, prefix: str) -> int:
        """Forget what is kept under keys that begin so, and keep nothing of what is being generated for them.

        Raises: Unavailable when the store cannot be reached.
        """
        self.flights.spoil(prefix)
        return await self.store.flush(prefix)

    async def close(self) -> None:
        if self._keeping:
            _, late = await asyncio.wait(self._keeping, timeout=LAST_KEEPING_S)
            for task in late:
                task.cancel()
        await self.store.close()


def _is_what_was_asked(flight: Flight, entry: Entry) -> bool:
    """Not an answer of a fallback, nor of a shallower path while the right one was loading."""
    target = flight.target
    assert target is not None
    is_there = flight.key.startswith(key_prefix(target.student, target.path))
    return is_there and all(choice.path == target.path for choice in entry.choices)


def make_result_cache(config: CacheConfig) -> ResultCache:
    """Raises: ConfigError for a Redis that cannot be set up."""
    has_redis = config.enabled and config.url is not None
    store = RedisStore(config) if has_redis else MemoryStore(config.max_bytes, config.ttl_s)
    return ResultCache(config, store)
