"""When sessions begin: each schedule is the moments of one run, in seconds from its start, all of them fixed before it.

A moment that has passed is not forgotten: its session begins late, and how late is in the results.
"""

import csv
import math
import random
from collections.abc import Iterator
from pathlib import Path

from loadtest.traffic.reading import WorkloadError
from loadtest.traffic.workload import Schedule


def moments(schedule: Schedule, seed: int) -> list[float]:
    """Of an open loop, in order, from 0 to the end of the measured window.

    Raises: WorkloadError for a trace that cannot be read.
    """
    assert schedule.is_open
    end_s = schedule.warm_up_s + schedule.duration_s
    if schedule.kind == "trace":
        return [moment for moment in read_trace(Path(str(schedule.trace))) if moment < end_s]
    assert schedule.rate is not None
    if schedule.kind == "constant":
        return [number / schedule.rate for number in range(math.ceil(end_s * schedule.rate))]
    return list(_poisson(schedule.rate, end_s, random.Random(f"moments {seed}")))


def _poisson(rate: float, end_s: float, rng: random.Random) -> Iterator[float]:
    """Distances are drawn from an exponential distribution: no grid with jitter, whose bursts are far too mild."""
    moment = rng.expovariate(rate)
    while moment < end_s:
        yield moment
        moment += rng.expovariate(rate)


def read_trace(file: Path) -> list[float]:
    """Seconds from the trace's start, from the first column of a CSV file; lines that begin with # are left out.

    Raises: WorkloadError.
    """
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row and not row[0].startswith("#")]
        found = [float(row[0]) for row in rows]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise WorkloadError(str(file), [f"the trace cannot be read: {error}"]) from error
    if not found or found != sorted(found) or found[0] < 0:
        raise WorkloadError(str(file), ["a trace has at least one moment, none below 0, in order"])
    return found


def write_trace(file: Path, found: list[float]) -> None:
    """For a schedule of kind trace."""
    file.write_text("# seconds from the start\n" + "".join(f"{moment:.6f}\n" for moment in found), encoding="utf-8")
