"""Where answers are kept: the contract of a store, its status, and the store in this process."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cachetools import TTLCache

ENTRY_OVERHEAD_BYTES = 512
"""What an entry takes besides its value: key, links and table slots, about this much by `tracemalloc`."""


@dataclass(slots=True, kw_only=True, frozen=True)
class StoreStatus:
    """Counters only grow. `errors` counts by (operation, kind); `open_breakers` says which operation's breaker is open.
    Entries and bytes are None where another process holds them."""

    num_entries: int | None = None
    num_bytes: int | None = None
    evictions: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    open_breakers: Mapping[str, bool] = field(default_factory=dict)


class Store(Protocol):
    """Values by key. Owned by the loop. A store counts its own failures."""

    async def get(self, key: str) -> bytes | None:
        """None for a key it does not have. Raises: Unavailable when it cannot tell."""
        ...

    async def put(self, key: str, value: bytes) -> bool:
        """Whether the value was kept; a store that fails returns False."""
        ...

    async def flush(self, prefix: str) -> int:
        """Forget every key with this prefix; returns how many. Raises: Unavailable when that cannot be done now."""
        ...

    def status(self) -> StoreStatus: ...

    async def close(self) -> None: ...


class MemoryStore:
    """Bounded in bytes and age; the least recently used entry goes first."""

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
            with contextlib.suppress(KeyError):  # expired since it was listed
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
    """Counts its evictions, by reason."""

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
