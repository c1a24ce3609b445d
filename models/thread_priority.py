"""Work that gives way to everything else on a busy machine."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

NICENESS = 5
"""Where the processor is short, such a thread has a third of what others have. With less it would get the interpreter,
which it needs for a moment before and after its work, so late that others notice."""
LEAST_PRIORITY = 19


def behind_others(work: Callable[[], T]) -> T:
    """Do work in a thread of its own, of low priority where the system lets single threads have one (Linux).

    Only for what leaves the interpreter free: whoever waits for that would wait for the thread's turn.
    Raises: what `work` does.
    """
    with ThreadPoolExecutor(1, "fenhe-behind", _give_way) as thread:
        return thread.submit(work).result()


def _give_way() -> None:
    if sys.platform == "linux":
        own = threading.get_native_id()
        niceness = min(os.getpriority(os.PRIO_PROCESS, own) + NICENESS, LEAST_PRIORITY)
        os.setpriority(os.PRIO_PROCESS, own, niceness)
