"""Work behind others: in another thread, of lower priority, with whatever it returns or raises."""

import os
import sys
import threading

import pytest

from models.thread_priority import LEAST_PRIORITY, NICENESS, behind_others


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="single threads have a priority of their own on Linux only")
def test_work_behind_others_has_a_low_priority_and_nobody_else_has() -> None:
    own = niceness()
    assert behind_others(niceness) == min(own + NICENESS, LEAST_PRIORITY)
    assert behind_others(niceness) == min(own + NICENESS, LEAST_PRIORITY)
    assert niceness() == own


def test_work_behind_others_returns_and_raises_as_it_would_here() -> None:
    assert behind_others(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        behind_others(lambda: 1 // 0)
