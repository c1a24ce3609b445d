"""Memory that goes back to the system: what a removed student held, and what freed objects left behind while nothing
is being answered.

Python and glibc keep what was freed for later use; after a burst of large bodies that is hundreds of megabytes.
"""

import asyncio
import ctypes
import gc
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.threads import run_in_daemon_thread

logger = logging.getLogger(__name__)

LOOK_S = 4.0
TRIM_AT = (2, 5)
"""Which looks at an idle server in a row give memory back: soon, and once more when what its last clients left, such as
connections that time out, is gone too."""
GROWN = 1.02
"""More than this times what a trim left is worth another one, also without requests: heads and trailers take memory
before there is a request."""
STARTING_AT = (200_000, 20, 50)
"""Young objects are looked through once there are so many: more than a start makes that builds no student."""
_STATM = Path("/proc/self/statm")
_ARENA_MAX = -8
"""`M_ARENA_MAX` in glibc's malloc.h."""


def collect_seldom() -> None:
    """While a server starts: nearly all that it makes then stays, and looking through it again and again took a tenth
    of the time. `tame_collector` ends it."""
    gc.set_threshold(*STARTING_AT)


def share_one_heap(environ: Mapping[str, str]) -> bool:
    """Have all threads allocate from one heap, as far as threads have not begun yet; whoever set their number keeps it.

    glibc gives threads heaps of their own, and `malloc_trim` never shrinks those: each keeps up to 64 MiB of freed
    memory at its end, for good. Returns whether there is one heap now. Only glibc has such heaps.
    """
    if "MALLOC_ARENA_MAX" in environ or "glibc.malloc.arena_max" in environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # as in `trim`
        return False
    return bool(mallopt(_ARENA_MAX, 1))


def give_memory_back() -> None:
    """Return what a removed student held: an engine is full of cycles, which wait for the collector, and glibc keeps
    freed weights."""
    gc.unfreeze()
    gc.collect()
    trim()


def trim() -> None:
    """Have the C library return what was freed. Only glibc can."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # Windows has no CDLL(None), musl and macOS no such function
        logger.debug("no malloc_trim here")
    else:
        malloc_trim(0)  # releases the GIL; memory in use, mapped weights and KV are not touched


def anonymous_bytes() -> int | None:
    """Memory in RAM that is no file's. None where the system does not say."""
    try:
        _, resident, shared, *_ = _STATM.read_text().split()
    except OSError:
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True, kw_only=True)
class IdleMemory:
    """Gives memory back while nothing is being answered. Owned by the loop; the work is done in a thread.

    `collect` frees cycles and `trim` returns what was freed. `measure` tells the memory in use.
    """

    is_idle: Callable[[], bool]
    measure: Callable[[], int | None] = anonymous_bytes
    collect: Callable[[], object] = gc.collect
    freeze: Callable[[], object] = gc.freeze
    trim: Callable[[], object] = trim
    _num_idle_looks: int = field(default=0, init=False)
    _left: int | None = field(default=None, init=False)
    """What the last trim left."""

    async def run(self) -> None:
        """Never returns. Does nothing on systems that cannot tell how much memory is in use."""
        while self.measure() is not None:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        if not self.is_idle():
            self._num_idle_looks = 0
            return
        if self._has_grown() and self._num_idle_looks >= TRIM_AT[-1]:
            self._num_idle_looks = 0
        self._num_idle_looks += 1
        if self._num_idle_looks in TRIM_AT:
            await run_in_daemon_thread(self._give_back)

    def _has_grown(self) -> bool:
        now = self.measure()
        return now is not None and self._left is not None and now > self._left * GROWN

    def _give_back(self) -> None:
        """The first time, what is left is what the server needs for good: it is taken out of later collections, which
        hold everything up for as long as they take (45 ms for all of the server, 2 ms without)."""
        before = self.measure()
        self.collect()
        self.trim()
        if self._left is None:
            self.freeze()
        self._left = self.measure()
        logger.debug("memory given back while idle before=%s after=%s", before, self._left)
