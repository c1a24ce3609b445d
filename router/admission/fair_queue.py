"""A queue in which tenants take turns by the tokens they have used, and a tenant's own entries by deadline.

Source: start-time fair queueing (Goyal, Vin, Cheng 1996): an entry starts at its tenant's virtual time, which its cost
then advances; the tenant with the earliest virtual time goes next.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Entry(Protocol):
    """What the queue must know of an entry. `order` is unique and grows with every arrival."""

    @property
    def tenant(self) -> str | None: ...

    @property
    def cost_tokens(self) -> int: ...

    @property
    def deadline_s(self) -> float: ...

    @property
    def order(self) -> int: ...


E = TypeVar("E", bound=Entry)


@dataclass(slots=True)
class Lane(Generic[E]):
    """A tenant's entries, next first, and the virtual time at which its next one starts."""

    start: float = 0.0
    entries: list[E] = field(default_factory=list)


class FairQueue(Generic[E]):
    def __init__(self) -> None:
        self._lanes: dict[str | None, Lane[E]] = {}
        self._now = 0.0

    def __iter__(self) -> Iterator[E]:
        for lane in self._lanes.values():
            yield from lane.entries

    def __len__(self) -> int:
        return sum(len(lane.entries) for lane in self._lanes.values())

    @property
    def tenants(self) -> frozenset[str | None]:
        """Those with entries."""
        return frozenset(tenant for tenant, lane in self._lanes.items() if lane.entries)

    @property
    def num_tenants(self) -> int:
        """Tenants with entries."""
        return len(self.tenants)

    def tokens_by_tenant(self) -> Counter[str | None]:
        held: Counter[str | None] = Counter()
        for entry in self:
            held[entry.tenant] += entry.cost_tokens
        return held

    def push(self, entry: E) -> None:
        lane = self._lanes.setdefault(entry.tenant, Lane())
        if not lane.entries:
            lane.start = max(lane.start, self._now)  # a tenant saves up no credit while it is away
        insort(lane.entries, entry, key=lambda other: (other.deadline_s, other.order))

    def peek(self) -> E | None:
        """The entry whose turn it is."""
        return next(iter(self.heads()), None)

    def heads(self) -> list[E]:
        """Each tenant's first entry, in the order of their turns."""
        waiting = [lane for lane in self._lanes.values() if lane.entries]
        waiting.sort(key=lambda lane: (lane.start, lane.entries[0].order))
        return [lane.entries[0] for lane in waiting]

    def pop(self) -> E:
        """Take the entry whose turn it is."""
        entry = self.peek()
        assert entry is not None
        self.take(entry)
        return entry

    def take(self, entry: E) -> None:
        """Remove an entry and charge its tenant the whole cost. One taken before its turn delays nobody else's."""
        self._now = min(lane.start for lane in self._lanes.values() if lane.entries)
        lane = self._lanes[entry.tenant]
        lane.entries.remove(entry)
        lane.start += entry.cost_tokens
        self._forget_idle()

    def remove(self, entry: E) -> None:
        self._lanes[entry.tenant].entries.remove(entry)

    def settle(self, tenant: str | None, num_tokens: float) -> None:
        """Charge what a popped entry cost beyond what it was charged; below 0: give back what it did not use."""
        if num_tokens > 0:
            self._lanes.setdefault(tenant, Lane(self._now))
        lane = self._lanes.get(tenant)
        if lane is not None:
            lane.start = max(lane.start + num_tokens, self._now)

    def forget(self) -> None:
        """Start afresh, once nothing runs and nothing waits."""
        self._lanes.clear()
        self._now = 0.0

    def _forget_idle(self) -> None:
        """Drop tenants that have no entries and are not ahead of the others: they are as good as new."""
        idle = [tenant for tenant, lane in self._lanes.items() if not lane.entries and lane.start <= self._now]
        for tenant in idle:
            del self._lanes[tenant]
