"""Single flight: requests that are the same at the same time share one generation.

The generation belongs to all who wait for it. It goes on when the request that began it leaves, and is ended when the
last one does.
"""

import asyncio
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from engines.sequence import SequenceEvent
from router.cache.entry import GOOD_ENDS, Entry
from router.cache.similar import Question
from router.decision import Priority, Target

HASTE_S = 1.0
"""Who must be done so much sooner than the one that queues for all does not wait for it. Requests that come together
differ by less."""


class Listener(Protocol):
    def push(self, index: int, event: SequenceEvent) -> None: ...


class Found(NamedTuple):
    """A kept answer; with a `similarity` it is that to a question which says only nearly the same."""

    entry: Entry
    similarity: float | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Lookup:
    """What the store has for all who wait for one flight: it is asked once. `lock` is held while it is."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_done: bool = False
    same: Entry | None = None
    is_similar_done: bool = False
    similar: Found | None = None


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Flight:
    """One generation, and who waits for it. Owned by the loop.

    `boarding` is held by whoever queues to begin it, by `deadline_s` at the latest. If that comes to nothing, the next
    one in line holds it and tries, so that nobody waits for a request that is gone. `target` is where the generation
    really runs, None until it does; `question` is that of the request which began it.
    """

    key: str
    num_sequences: int
    priority: Priority = Priority.NORMAL
    deadline_s: float = math.inf
    boarding: asyncio.Lock = field(default_factory=asyncio.Lock)
    lookup: Lookup = field(default_factory=Lookup)
    num_seats: int = 0
    target: Target | None = None
    question: Question | None = None
    is_storable: bool = True
    events: list[tuple[int, SequenceEvent]] = field(default_factory=list)
    _listeners: dict[int, Listener] = field(default_factory=dict)
    _num_unfinished: int = field(init=False)
    _end: Callable[[], None] | None = None
    _landed: Callable[["Flight", bool], None] | None = None

    def __post_init__(self) -> None:
        self._num_unfinished = self.num_sequences

    @property
    def is_open(self) -> bool:
        """Whether it may be joined: it has begun, and nothing of it has failed."""
        return self.target is not None

    @property
    def is_landed(self) -> bool:
        """Whether all of it has ended."""
        return self._num_unfinished == 0

    def take_off(self, target: Target, end: Callable[[], None], landed: Callable[["Flight", bool], None]) -> None:
        """It has begun. `end` stops it or lets go of it; `landed` is told once whether it ended well, or at the first
        sequence that did not."""
        self.target, self._end, self._landed = target, end, landed

    def join(self, listener: Listener) -> None:
        """Give the listener what there was, and everything that comes."""
        for index, event in self.events:
            listener.push(index, event)
        self._listeners[id(listener)] = listener

    def leave(self, listener: Listener) -> None:
        self._listeners.pop(id(listener), None)

    def push(self, index: int, event: SequenceEvent) -> None:
        """An event of the engine."""
        self.events.append((index, event))
        if event.finish is not None:
            self._note_finish(is_good=event.finish.reason in GOOD_ENDS)
        for listener in self._listeners.values():
            listener.push(index, event)

    def end(self) -> None:
        """Stop the generation, if it is still going on."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def _note_finish(self, *, is_good: bool) -> None:
        self._num_unfinished -= 1
        if self._num_unfinished == 0:
            self.end()
        if not is_good or self._num_unfinished == 0:
            landed, self._landed = self._landed, None
            if landed is not None:
                landed(self, is_good)


class Flights:
    """Every generation that may be joined, or will be when it begins, by key and priority. Owned by the loop.

    One that has begun is for all. Before, it queues, and who is more urgent must not wait for that: each priority has
    its own, and one that must be done much sooner than whoever queues begins another in its place.
    """

    def __init__(self, max_joined: int) -> None:
        self._max_joined = max_joined
        self._by_key: dict[tuple[str, Priority], Flight] = {}
        self._all: weakref.WeakSet[Flight] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._by_key)

    def enter(
        self, key: str, num_sequences: int, priority: Priority = Priority.NORMAL, deadline_s: float = math.inf
    ) -> Flight:
        """Take a seat in a flight of this key: one that is there, or a new one."""
        flight = self._begun(key)
        if flight is None:
            flight = self._by_key.get((key, priority))
            if flight is None or deadline_s + HASTE_S < flight.deadline_s:
                flight = self._make(key, num_sequences, priority, deadline_s)
                self._by_key[key, priority] = flight
        if flight.num_seats >= self._max_joined:
            return self.enter_alone(key, num_sequences)
        flight.num_seats += 1
        return flight

    def enter_alone(self, key: str, num_sequences: int) -> Flight:
        """A flight that nobody else can join."""
        flight = self._make(key, num_sequences)
        flight.num_seats = 1
        return flight

    def _begun(self, key: str) -> Flight | None:
        flights = (self._by_key.get((key, priority)) for priority in Priority)
        return next((flight for flight in flights if flight is not None and flight.is_open), None)

    def _make(
        self, key: str, num_sequences: int, priority: Priority = Priority.NORMAL, deadline_s: float = math.inf
    ) -> Flight:
        flight = Flight(key=key, num_sequences=num_sequences, priority=priority, deadline_s=deadline_s)
        self._all.add(flight)
        return flight

    def leave(self, flight: Flight) -> None:
        """Give a seat back; the last one ends the generation."""
        flight.num_seats -= 1
        if flight.num_seats == 0:
            self._give_up(flight)

    def _give_up(self, flight: Flight) -> None:
        if not flight.is_landed:  # one that is waits to be kept, and may be joined till then
            flight.end()
            self.drop(flight)

    def drop(self, flight: Flight) -> None:
        """Let nobody enter it any more; those in it stay."""
        if self._by_key.get((flight.key, flight.priority)) is flight:
            del self._by_key[flight.key, flight.priority]

    def spoil(self, prefix: str) -> None:
        """What is being generated under these keys is neither kept nor joined by requests that come from now on."""
        for flight in [one for one in self._all if one.key.startswith(prefix)]:
            flight.is_storable = False
            flight.lookup = Lookup()
            self.drop(flight)
