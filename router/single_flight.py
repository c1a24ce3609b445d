"""Single flight: requests that are the same at the same time share one generation.

The generation belongs to all who wait for it. It goes on when the request that began it leaves, and is ended when the
last one does.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from engines.sequence import SequenceEvent
from router.cache_entry import GOOD_ENDS, Entry
from router.decision import Target
from router.similar import Question


class Listener(Protocol):
    def push(self, index: int, event: SequenceEvent) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """One generation, and who waits for it. Owned by the loop.

    `boarding` is held by whoever finds out how to get the answer. If that comes to nothing, the next one in line holds
    it and tries, so that nobody waits for a request that is gone. `target` is where the generation really runs, None
    until it does. `found` is what the last holder found in the store: an answer to the same request, or with a
    `similarity` to one that says nearly the same as its `question`.
    """

    key: str
    num_sequences: int
    boarding: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_seats: int = 0
    target: Target | None = None
    found: Entry | None = None
    question: Question | None = None
    similarity: float | None = None
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
    """Every generation that may be joined, by key. Owned by the loop."""

    def __init__(self, max_joined: int) -> None:
        self._max_joined = max_joined
        self._by_key: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def enter(self, key: str, num_sequences: int) -> Flight:
        """Take a seat in the flight of this key: one that is there, or a new one."""
        flight = self._by_key.get(key)
        if flight is None:
            flight = self._by_key[key] = Flight(key=key, num_sequences=num_sequences)
        elif flight.num_seats >= self._max_joined:
            return self.enter_alone(key, num_sequences)
        flight.num_seats += 1
        return flight

    def enter_alone(self, key: str, num_sequences: int) -> Flight:
        """A flight that nobody else can join."""
        return Flight(key=key, num_sequences=num_sequences, num_seats=1)

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
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def spoil(self, prefix: str) -> None:
        """What is being generated under these keys is neither kept nor joined by requests that come from now on."""
        for flight in [one for one in self._by_key.values() if one.key.startswith(prefix)]:
            flight.is_storable = False
            self.drop(flight)
