"""Weights that ONNX Runtime maps and fenhe's own operators have copied: their memory is given back.

Operators copy each matrix at their first run, into a layout of their own that lies in huge pages, and never read it
where it was. Its pages would stay in the process's resident memory, so that all weights were there twice.
"""

import ctypes
import logging
import mmap
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

MAPPINGS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"^(?=[0-9a-f]+-[0-9a-f]+ )", re.MULTILINE)
_FIRST_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$", re.MULTILINE)
_WRITTEN = re.compile(r"^(Anonymous|Swap): *[1-9]", re.MULTILINE)


def release_pages(files: Iterable[Path]) -> None:
    """Give back the resident pages of files that this process maps and did not write. What is read again comes from the
    file, usually from the system's cache of it. Does nothing on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in _unwritten_mappings({os.path.realpath(file) for file in files}):
        if libc.madvise(start, end - start, mmap.MADV_DONTNEED) != 0:
            logger.debug("pages of weights stay in memory: %s", os.strerror(ctypes.get_errno()))


def _unwritten_mappings(files: set[str]) -> Iterator[tuple[int, int]]:
    """Where the files are mapped: first address, and the one behind the last. Not where a page was written: its mapping
    is private, so the page is in memory or swapped out, and nowhere else."""
    try:
        mappings = _MAPPING.split(MAPPINGS.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return
    for mapping in mappings:
        first = _FIRST_LINE.match(mapping)
        if first is not None and first[3] in files and not _WRITTEN.search(mapping):
            yield int(first[1], 16), int(first[2], 16)
