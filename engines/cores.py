"""How many cores this process may use."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Of a container that sees only itself: its own limits."""


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Those it may run on, but no more than a container's CPU limit pays for: more threads than that are stopped in
    every period until the next one, all at once.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max); sched-bwc.rst for version 1.
    """
    cores = len(os.sched_getaffinity(0))
    limit = _limit(cgroup)
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def _limit(cgroup: Path) -> float | None:
    """CPU time per time; None where there is no limit."""
    words = _words(cgroup / "cpu.max") or [
        *_words(cgroup / "cpu" / "cpu.cfs_quota_us"),
        *_words(cgroup / "cpu" / "cpu.cfs_period_us"),
    ]
    if len(words) != 2 or not all(word.isdecimal() for word in words):  # "max", or -1
        return None
    quota, period = map(int, words)
    return quota / period if quota and period else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except OSError:
        return []
