"""`fenhe loadtest growth`: how time and memory grow with the number of users and with the length of prompts.

Time to the first token is fitted as a + b n + c n^2 (n prompt tokens; the square is attention's), time of users and
memory as a + b n. Where the largest is far above its curve, growth is worse than that, which is a defect. The server's
threads tell who took the core: the first is the HTTP loop, the others are the engine's.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.comparison.measuring import Generator
from loadtest.comparison.places import add_place_options, place_of
from loadtest.comparison.servers import AbsentServer, RunningServer, read_servers, started
from loadtest.generator.results import machine, versions
from loadtest.measure.verdict import Status
from loadtest.served import folder_until_the_end
from loadtest.traffic.reading import read_workload

USERS = (1, 2, 4, 8, 16, 32, 64, 128)
LENGTHS = (16, 64, 256, 1024, 2048, 4096)
LENGTH_ANSWERS = 8
MOST_ABOVE = 1.25
"""Over the fitted curve. More is a defect."""
COLUMNS = {
    "tokens/s": "output_throughput",
    "TTFT p50": "median_ttft_ms",
    "TTFT p95": "p95_ttft_ms",
    "TTFT p99": "p99_ttft_ms",
    "E2E p50": "median_e2el_ms",
    "E2E p95": "p95_e2el_ms",
    "E2E p99": "p99_e2el_ms",
}
LEAST_REQUESTS = 8
MOST_LONGER, LONGER = 3, 3.0
"""Of long prompts few fit into a window: it is made so many times longer, and so often tried."""
WATCH_S = 1.0
BUSY_PERCENTILE = 75
"""Of the seconds of a measurement, some of which are idle: the generator's start, and its end."""
LEAST_KEPT = 0.85
"""Of the highest throughput, with the most users. Less is a defect."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Step:
    """`load` is users or prompt tokens. `loop_share` and `engine_share`: of one core, in a busy second."""

    load: int
    figures: dict[str, float]
    resident_mib: float
    loop_share: float
    engine_share: float


@dataclass(slots=True, kw_only=True, frozen=True)
class Fit:
    """value = sum of coefficient * load ** its position. `worst_above`: highest of measured / fitted."""

    coefficients: tuple[float, ...]
    worst_above: float
    last_above: float

    def __str__(self) -> str:
        terms = (f"{c:.4g}{('', ' n', ' n^2')[power]}" for power, c in enumerate(self.coefficients) if c)
        return f"{' + '.join(terms) or '0'} (largest: {self.last_above:.2f} of it)"


def fit(loads: Sequence[float], values: Sequence[float], degree: int) -> Fit:
    """Least squares of relative errors, with coefficients of at least 0."""
    n, y = np.asarray(loads, dtype=np.float64), np.asarray(values, dtype=np.float64)
    rows = np.stack([n**power for power in range(degree + 1)], axis=1) / y[:, None]
    best, least = np.zeros(degree + 1), np.inf
    for size in range(1, degree + 2):
        for chosen in combinations(range(degree + 1), size):
            found = np.linalg.lstsq(rows[:, chosen], np.ones(len(y)), rcond=None)[0]
            error = float(((rows[:, chosen] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(degree + 1), error
                best[list(chosen)] = found
    above = 1 / (rows @ best)
    return Fit(coefficients=tuple(map(float, best)), worst_above=float(above.max()), last_above=float(above[-1]))


def thread_seconds(pid: int) -> tuple[float, float]:
    """CPU seconds of the process's first thread, and of all others together."""
    ticks = os.sysconf("SC_CLK_TCK")
    first = others = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        seconds = (int(fields[11]) + int(fields[12])) / ticks
        if int(task.name) == pid:
            first = seconds
        else:
            others += seconds
    return first, others


def measure(
    generator: Generator, server: RunningServer, load: int, *, users: int, more: Sequence[str], seconds: float
) -> Step:
    """Over a longer window when too few requests fit into it."""
    for _ in range(MOST_LONGER):
        with watched_threads(server.process.pid) as shares:
            point = generator.measure(
                server, concurrency=users, warm_up_s=min(5.0, seconds / 4), duration_s=seconds, more=more
            )
        if point.figures.get("completed", 0) >= LEAST_REQUESTS:
            break
        seconds *= LONGER
    loop, engine = np.percentile(shares or [(0.0, 0.0)], BUSY_PERCENTILE, axis=0)
    return Step(
        load=load,
        figures=point.figures,
        resident_mib=point.resident_mib,
        loop_share=float(loop),
        engine_share=float(engine),
    )


@contextlib.contextmanager
def watched_threads(pid: int) -> Iterator[list[tuple[float, float]]]:
    """Filled, while the block runs, with the shares of a core that the first thread and the others took."""
    shares: list[tuple[float, float]] = []
    is_over = threading.Event()

    def watch() -> None:
        before, since_s = thread_seconds(pid), time.perf_counter()
        while not is_over.wait(WATCH_S):
            now, now_s = thread_seconds(pid), time.perf_counter()
            shares.append(((now[0] - before[0]) / (now_s - since_s), (now[1] - before[1]) / (now_s - since_s)))
            before, since_s = now, now_s

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield shares
    finally:
        is_over.set()
        watcher.join()


def judged(by_users: Sequence[Step], by_length: Sequence[Step]) -> tuple[dict[str, str], list[str]]:
    """The curves, and the defects."""
    curves: dict[str, str] = {}
    defects: list[str] = []
    for name, steps, quantity, degree in (
        ("TTFT over prompt tokens, ms", by_length, "median_ttft_ms", 2),
        ("end to end over users, ms", by_users, "median_e2el_ms", 1),
    ):
        seen = [(step.load, step.figures[quantity]) for step in steps if quantity in step.figures]
        _judge(name, seen, degree, curves, defects)
    for name, steps in (("MiB over prompt tokens", by_length), ("MiB over users", by_users)):
        _judge(name, [(step.load, step.resident_mib) for step in steps], 1, curves, defects)
    rates = [step.figures.get("output_throughput", 0.0) for step in by_users]
    if rates and rates[-1] < LEAST_KEPT * max(rates):
        defects.append(f"with {by_users[-1].load} users throughput is {rates[-1] / max(rates):.0%} of the highest")
    return curves, defects


def _judge(
    name: str, seen: Sequence[tuple[int, float]], degree: int, curves: dict[str, str], defects: list[str]
) -> None:
    if len(seen) <= degree + 1:
        return
    curve = fit([load for load, _ in seen], [value for _, value in seen], degree)
    curves[name] = str(curve)
    if curve.last_above > MOST_ABOVE:
        defects.append(f"{name}: the largest is {curve.last_above:.2f} times its curve {curve}")


def knee_of(by_users: Sequence[Step]) -> str:
    """Where throughput stops growing, and whose time it is there."""
    rates = [step.figures.get("output_throughput", 0.0) for step in by_users]
    if not rates:
        return "no user was measured"
    number = next(number for number, rate in enumerate(rates) if rate >= 0.95 * max(rates))
    step = by_users[number]
    who = "the engine" if step.engine_share >= step.loop_share else "the HTTP loop (Python)"
    return (
        f"{step.load} users reach {rates[number]:.0f} of {max(rates):.0f} tokens/s; there {who} is the limit: "
        f"engine {step.engine_share:.0%} of a core, HTTP loop {step.loop_share:.0%}"
    )


def rows(title: str, steps: Sequence[Step]) -> Iterator[str]:
    yield f"{title:>14}" + "".join(f"{heading:>10}" for heading in (*COLUMNS, "MiB", "loop", "engine"))
    for step in steps:
        cells = [f"{step.figures.get(name, float('nan')):.0f}" for name in COLUMNS.values()]
        cells += [f"{step.resident_mib:.0f}", f"{step.loop_share:.0%}", f"{step.engine_share:.0%}"]
        yield f"{step.load:>14}" + "".join(cell.rjust(10) for cell in cells)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--server", default="routed-uncached", help="of servers.toml (default: %(default)s)")
    parser.add_argument("--users", default=",".join(map(str, USERS)), help="default: %(default)s")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="default: %(default)s")
    parser.add_argument("--duration", type=float, default=30.0, metavar="S", help="of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    add_place_options(parser)


def run(options: argparse.Namespace) -> int:
    try:
        with folder_until_the_end("fenhe-growth-") as folder:
            by_users, by_length = grown(options, folder, lambda line: print(line, file=sys.stderr, flush=True))
    except (ValueError, OSError, AbsentServer) as error:
        print(f"fenhe loadtest: {error}", file=sys.stderr)
        return Status.CANNOT_MEASURE
    curves, defects = judged(by_users, by_length)
    told = [*rows("users", by_users), "", *rows("prompt tokens", by_length), ""]
    told += [*(f"{name}: {curve}" for name, curve in curves.items()), f"knee: {knee_of(by_users)}"]
    print("\n".join([*told, *(f"DEFECT: {defect}" for defect in defects)]))
    if options.json is not None:
        document: dict[str, Any] = {"machine": machine(), "versions": versions(), "curves": curves, "defects": defects}
        document |= {"users": list(map(asdict, by_users)), "lengths": list(map(asdict, by_length))}
        options.json.write_text(json.dumps(document | {"knee": knee_of(by_users)}, indent=1))
    return Status.MISSED if defects else Status.GOOD


def grown(options: argparse.Namespace, folder: Path, report: Callable[[str], None]) -> tuple[list[Step], list[Step]]:
    """Raises: ValueError, OSError, AbsentServer."""
    users, lengths = ([int(part) for part in text.split(",") if part] for text in (options.users, options.lengths))
    place, specs = place_of(options, folder), read_servers()
    if options.server not in specs:
        raise ValueError(f"no server is called {options.server!r}; there are {', '.join(specs)}")
    generator = Generator(place=place, workload=read_workload("growth"), file="growth", report=report)
    seconds = options.duration
    with started(options.server, specs[options.server], place) as server:
        by_users = [measure(generator, server, load, users=load, more=(), seconds=seconds) for load in users]
    with started(options.server, specs[options.server], place) as server:
        answers = ("--answer-tokens", str(LENGTH_ANSWERS))
        by_length = [
            measure(generator, server, load, users=1, more=("--prompt-tokens", str(load), *answers), seconds=seconds)
            for load in lengths
        ]
    return by_users, by_length
