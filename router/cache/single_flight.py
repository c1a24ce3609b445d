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
"""A request whose deadline is earlier than its flight's by more than this does not wait for it, but begins a new one.
The deadlines of requests that come together differ by less."""


class Listener(Protocol):
    def push(self, index: int, event: SequenceEvent) -> None: ...


class Found(NamedTuple):
    """A kept answer; with a `similarity` it answers a question that says only nearly the same."""

    entry: Entry
    similarity: float | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Lookup:
    """What the store has for all who wait for one flight: it is asked once. `lock` is held meanwhile."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_done: bool = False
    same: Entry | None = None
    is_similar_done: bool = False
    similar: Found | None = None


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Flight:
    """One generation and the requests that share it. Owned by the loop.

    `turn_to_lead` is held by the request that queues to start it, which must be done by `deadline_s`. If that request
    is refused or leaves, another takes its turn, so that none waits for a request that is gone. `target` is where the
    generation runs, None until it does; `question` is that of the request which started it.
    """

    key: str
    num_sequences: int
    priority: Priority = Priority.NORMAL
    deadline_s: float = math.inf
    turn_to_lead: asyncio.Lock = field(default_factory=asyncio.Lock)
    lookup: Lookup = field(default_factory=Lookup)
    num_shares: int = 0
    target: Target | None = None
    question: Question | None = None
    is_storable: bool = True
    events: list[tuple[int, SequenceEvent]] = field(default_factory=list)
    _listeners: dict[int, Listener] = field(default_factory=dict)
    _num_unfinished: int = field(init=False)
    _end: Callable[[], None] | None = None
    _when_finished: Callable[["Flight", bool], None] | None = None

    def __post_init__(self) -> None:
        self._num_unfinished = self.num_sequences

    @property
    def is_open(self) -> bool:
        """Whether it has started and may be joined."""
        return self.target is not None

    @property
    def is_finished(self) -> bool:
        """Whether all of it has ended."""
        return self._num_unfinished == 0

    def start(self, target: Target, end: Callable[[], None], when_finished: Callable[["Flight", bool], None]) -> None:
        """`end` stops the generation, or releases it once it has finished. `when_finished` is called once, with whether
        it ended well: when all sequences have ended, or at the first one that failed."""
        self.target, self._end, self._when_finished = target, end, when_finished

    def join(self, listener: Listener) -> None:
        """Give the listener all past and future events."""
        for index, event in self.events:
            listener.push(index, event)
        self._listeners[id(listener)] = listener

    def leave(self, listener: Listener) -> None:
        self._listeners.pop(id(listener), None)

    def push(self, index: int, event: SequenceEvent) -> None:
        """Take an event of the engine."""
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
            when_finished, self._when_finished = self._when_finished, None
            if when_finished is not None:
                when_finished(self, is_good)


class Flights:
    """Every generation that may be joined, now or once it has started, by key and priority. Owned by the loop.

    One that has started is for all. Until then it waits as long as its first request does, and more urgent requests
    must not wait with it: each priority has a flight of its own, and a request with a much earlier deadline begins a
    new one in place of the old.
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
        """A share in the flight of this key, which is made if there is none."""
        flight = self._find_started(key)
        if flight is None:
            flight = self._by_key.get((key, priority))
            if flight is None or deadline_s + HASTE_S < flight.deadline_s:
                flight = self._make(key, num_sequences, priority, deadline_s)
                self._by_key[key, priority] = flight
        if flight.num_shares >= self._max_joined:
            return self.enter_alone(key, num_sequences)
        flight.num_shares += 1
        return flight

    def enter_alone(self, key: str, num_sequences: int) -> Flight:
        """A flight that no other request can join."""
        flight = self._make(key, num_sequences)
        flight.num_shares = 1
        return flight

    def _find_started(self, key: str) -> Flight | None:
        flights = (self._by_key.get((key, priority)) for priority in Priority)
        return next((flight for flight in flights if flight is not None and flight.is_open), None)

    def _make(
        self, key: str, num_sequences: int, priority: Priority = Priority.NORMAL, deadline_s: float = math.inf
    ) -> Flight:
        flight = Flight(key=key, num_sequences=num_sequences, priority=priority, deadline_s=deadline_s)
        self._all.add(flight)
        return flight

    def leave(self, flight: Flight) -> None:
        """Give a share back; the last one ends the generation."""
        flight.num_shares -= 1
        if flight.num_shares == 0:
            self._give_up(flight)

    def _give_up(self, flight: Flight) -> None:
        if not flight.is_finished:  # a finished one may be joined until its answer is kept
            flight.end()
            self.drop(flight)

    def drop(self, flight: Flight) -> None:
        """Let no other request share it; those that do keep their share."""
        if self._by_key.get((flight.key, flight.priority)) is flight:
            del self._by_key[flight.key, flight.priority]

    def invalidate(self, prefix: str) -> None:
        """Keep nothing of what is being generated under these keys, and let no later request join it."""
        for flight in [one for one in self._all if one.key.startswith(prefix)]:
            flight.is_storable = False
            flight.lookup = Lookup()
            self.drop(flight)
