"""Assigns slots to sequences: deepest paths first, so that every module's rows are one contiguous range.

Pure bookkeeping: it decides moves and leaves the copying of KV to the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_HOLE_SHARE = 0.125
"""Holes cost a wasted row a step, moving costs a copy of the sequence's KV: compact only past this share."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Move:
    source: int
    target: int


class SlotMap(Generic[T]):
    """Slots in depth order. `depth` is a rank, 0 for the deepest path; along the slots it never falls.

    `moves` returned by a call must be carried out in their order before the next step.
    """

    def __init__(self, num_slots: int) -> None:
        self._occupants: list[tuple[int, T] | None] = [None] * num_slots

    def occupant(self, slot: int) -> T | None:
        entry = self._occupants[slot]
        return None if entry is None else entry[1]

    @property
    def num_used(self) -> int:
        return sum(entry is not None for entry in self._occupants)

    @property
    def has_room(self) -> bool:
        return any(entry is None for entry in self._occupants)

    @property
    def end(self) -> int:
        """One past the last occupied slot."""
        return max((slot for slot, entry in enumerate(self._occupants) if entry is not None), default=-1) + 1

    def allocate(self, item: T, depth: int) -> tuple[int, list[Move]]:
        """Find a slot among those of its depth, shifting shallower occupants where there is none.

        Returns the slot and the moves that make room. `has_room` must hold.
        """
        assert self.has_room
        moves: list[Move] = []
        slot = self._free_slot_for(depth)
        if slot is None:
            self._squeeze(moves)
            slot = self._free_slot_for(depth)
        if slot is None:
            slot = self._push_down(depth, moves)
        self._occupants[slot] = (depth, item)
        return slot, moves

    def free(self, slot: int) -> None:
        assert self._occupants[slot] is not None
        self._occupants[slot] = None

    def compact(self) -> list[Move]:
        """Close the holes once they are more than `MAX_HOLE_SHARE` of the slots up to `end`."""
        moves: list[Move] = []
        end = self.end
        if end - self.num_used > end * MAX_HOLE_SHARE:
            self._squeeze(moves)
        return moves

    def _free_slot_for(self, depth: int) -> int | None:
        """The first free slot behind everything as deep and before everything shallower."""
        entries = list(enumerate(self._occupants))
        first = max((slot for slot, entry in entries if entry and entry[0] < depth), default=-1) + 1
        end = min((slot for slot, entry in entries if entry and entry[0] > depth), default=len(entries))
        return next((slot for slot in range(first, end) if self._occupants[slot] is None), None)

    def _squeeze(self, moves: list[Move]) -> None:
        """Bring all occupants to the front with as few moves as depth order allows.

        Depth by depth: the members behind their depth's range fill the holes in it. Only members of that depth or
        holes can lie in the range, because occupants are sorted by depth.
        """
        first = 0
        for depth in sorted({entry[0] for entry in self._occupants if entry is not None}):
            members = [slot for slot, entry in enumerate(self._occupants) if entry is not None and entry[0] == depth]
            end = first + len(members)
            holes = [slot for slot in range(first, end) if self._occupants[slot] is None]
            stray = [slot for slot in members if slot >= end]
            for source, target in zip(reversed(stray), holes, strict=True):
                self._move(source, target, moves)
            first = end

    def _push_down(self, depth: int, moves: list[Move]) -> int:
        """Make room before the shallower occupants: the first of each depth goes behind the last of its depth."""
        firsts = self._first_of_each(depth)
        target = self.end
        for slot in reversed(firsts):
            self._move(slot, target, moves)
            target = slot
        return target

    def _first_of_each(self, depth: int) -> Sequence[int]:
        """The first slot of every depth shallower than `depth`, in slot order. Valid after `_squeeze`."""
        firsts: dict[int, int] = {}
        for slot, entry in enumerate(self._occupants):
            if entry is not None and entry[0] > depth:
                firsts.setdefault(entry[0], slot)
        return list(firsts.values())

    def _move(self, source: int, target: int, moves: list[Move]) -> None:
        assert self._occupants[target] is None
        self._occupants[target], self._occupants[source] = self._occupants[source], None
        moves.append(Move(source=source, target=target))
