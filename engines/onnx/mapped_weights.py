"""Weights that ONNX Runtime maps and fenhe's own operators have copied: their memory is given back.

Operators copy each matrix at their first run, into a layout of their own that lies in huge pages, and never read it
where it was. Its pages would stay in the process's resident memory, so that all weights were there twice.
"""

import bisect
import contextlib
import ctypes
import logging
import mmap
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

MAPPINGS = Path("/proc/self/maps")
MAPPINGS_IN_DETAIL = Path("/proc/self/smaps")
_MAPPING = re.compile(r"^(?=[0-9a-f]+-[0-9a-f]+ )", re.MULTILINE)
_FIRST_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$", re.MULTILINE)
_WRITTEN = re.compile(r"^(Anonymous|Swap): *[1-9]", re.MULTILINE)

Addresses = tuple[int, int]
"""The first one, and the one behind the last."""


class MappedWeights:
    """What the sessions of one runner map of a folder's files. Does nothing where the system does not tell what is
    mapped."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder) + os.sep
        self._own: set[Addresses] = set()

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Around the opening of a session, which must live until `release_pages` has returned."""
        before = set(self._mapped())
        yield
        self._own |= set(self._mapped()) - before

    def release_pages(self) -> None:
        """Give back the resident pages that nobody wrote. What is read again comes from the file, usually from the
        system's cache of it."""
        if not self._own:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, end in self._unwritten():
            if libc.madvise(start, end - start, mmap.MADV_DONTNEED) != 0:
                logger.debug("pages of weights stay in memory: %s", os.strerror(ctypes.get_errno()))

    def _mapped(self) -> Iterator[Addresses]:
        for first in _FIRST_LINE.finditer(_read(MAPPINGS)):
            if first[3].startswith(self._folder):
                yield int(first[1], 16), int(first[2], 16)

    def _unwritten(self) -> Iterator[Addresses]:
        """Parts of own mappings; the system may have joined neighbours. Not where a page was written: a mapping is
        private, so that page is in memory or swapped out, and nowhere else."""
        own = _joined(self._own)
        ends = [end for _, end in own]
        for mapping in _MAPPING.split(_read(MAPPINGS_IN_DETAIL)):
            first = _FIRST_LINE.match(mapping)
            if first is None or not first[3].startswith(self._folder) or _WRITTEN.search(mapping):
                continue
            start, end = int(first[1], 16), int(first[2], 16)
            for own_start, own_end in own[bisect.bisect_right(ends, start) :]:
                if own_start >= end:
                    break
                yield max(start, own_start), min(end, own_end)


def _joined(ranges: Iterable[Addresses]) -> list[Addresses]:
    """The same addresses in ascending order, none of them twice."""
    found: list[Addresses] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _read(file: Path) -> str:
    """Empty on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        return ""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
