"""Where answers are kept: the contract, what a store tells of itself, and the store in this process."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cachetools import TTLCache

ENTRY_OVERHEAD_BYTES = 512
"""What an entry takes beside its value: key, links and table slots, by `tracemalloc` about this much."""


@dataclass(slots=True, kw_only=True, frozen=True)
class StoreStatus:
    """Counters only grow. `errors` counts by (operation, kind); `open_breakers` tells of each operation's breaker.
    Entries and bytes are None where another process holds them."""

    num_entries: int | None = None
    num_bytes: int | None = None
    evictions: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    open_breakers: Mapping[str, bool] = field(default_factory=dict)


class Store(Protocol):
    """Values by key. Owned by the loop. It counts its own failures."""

    async def get(self, key: str) -> bytes | None:
        """None where it has nothing. Raises: Unavailable when it cannot tell."""
        ...

    async def put(self, key: str, value: bytes) -> bool:
        """Whether it is kept; it is not by a store that fails."""
        ...

    async def flush(self, prefix: str) -> int:
        """Forget every key that begins so; returns how many. Raises: Unavailable when that cannot be done now."""
        ...

    def status(self) -> StoreStatus: ...

    async def close(self) -> None: ...


class MemoryStore:
    """Least recently used and too old goes first; bounded in bytes."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._values = _Values(max_bytes, ttl_s, clock)

    async def get(self, key: str) -> bytes | None:
        try:
            return self._values[key]
        except KeyError:
            return None

    async def put(self, key: str, value: bytes) -> bool:
        if _size(value) > self._values.maxsize:
            return False
        self._values[key] = value
        return True

    async def flush(self, prefix: str) -> int:
        found = [key for key in self._values if key.startswith(prefix)]
        for key in found:
            with contextlib.suppress(KeyError):  # too old since it was listed
                del self._values[key]
        return len(found)

    def status(self) -> StoreStatus:
        self._values.expire()
        return StoreStatus(
            num_entries=len(self._values), num_bytes=int(self._values.currsize), evictions=dict(self._values.evictions)
        )

    async def close(self) -> None:
        self._values.clear()


def _size(value: bytes) -> int:
    return len(value) + ENTRY_OVERHEAD_BYTES


class _Values(TTLCache[str, bytes]):
    """Counts what it lets go of by itself."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float]) -> None:
        super().__init__(max_bytes, ttl_s, timer=clock, getsizeof=_size)
        self.evictions: Counter[str] = Counter(room=0, age=0)

    def popitem(self) -> tuple[str, bytes]:
        self.evictions["room"] += 1
        return super().popitem()

    def expire(self, time: float | None = None) -> list[tuple[str, bytes]]:
        expired = super().expire(time)
        self.evictions["age"] += len(expired)
        return expired
