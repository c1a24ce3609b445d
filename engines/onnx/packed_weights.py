"""The packed matrices of a stage in memory: once, for as long as its session lives.

Read rather than mapped. A mapping would end the process (SIGBUS) when somebody cuts the file short under it, and would
follow what is written into it; and memory of our own may lie in huge pages, so that a step that reads all of it looks
up few addresses. It takes what the file has, and nothing besides.
"""

import mmap
import os

import numpy as np
import numpy.typing as npt

from models.errors import WeightsError, reason_of
from models.student.folder import Student

Bytes = npt.NDArray[np.uint8]

HUGE_PAGE = 2 << 20
FIX = "build the student again with `fenhe build`"


def read_packed(student: Student, variant: str, stage: str) -> Bytes | None:
    """The packed matrices of a stage; None where it has none.

    Shapes: returns [bytes].
    Raises: WeightsError for a file that is missing, damaged, or not the one that the manifest names.
    """
    found = student.packed_weights(variant, stage)
    if found is None or found[1] == 0:
        return None
    file, size = found
    memory = _huge_memory(size)
    try:
        with file.open("rb", buffering=0) as stream:
            before = os.fstat(stream.fileno())
            count = _fill(stream.fileno(), memory)
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {reason_of(error)}; {FIX}") from error
    if count != size or before.st_size != size:
        raise WeightsError(f"{file} has {min(count, before.st_size)} bytes instead of {size}; {FIX}")
    if (before.st_mtime_ns, before.st_ctime_ns) != (after.st_mtime_ns, after.st_ctime_ns):
        raise WeightsError(f"{file} was changed while it was read; {FIX}")
    return memory


def _huge_memory(size: int) -> Bytes:
    """Memory that begins with a huge page, where the system has them. Shapes: returns [size]."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    return whole[start : start + size]


def _fill(descriptor: int, memory: Bytes) -> int:
    """How many bytes there were, at most those that fit."""
    done = 0
    while done < len(memory):
        count = os.preadv(descriptor, [memory.data[done:]], done)
        if count == 0:
            break
        done += count
    return done
