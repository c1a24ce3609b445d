"""What is measured of each server: load that grows, its knee, short prompts, and what each part is worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from loadtest.comparison.measuring import Generator, Point
from loadtest.comparison.servers import RunningServer
from loadtest.comparison.sweep import confirmed, find_concurrency, find_rate
from loadtest.traffic.workload import Workload

LITTLE_LOAD = 0.7
ABLATION_CONCURRENCY = 16
SHORT_CONCURRENCY = 8


@dataclass(slots=True, kw_only=True, frozen=True)
class Sizes:
    """How long and how often. No request may take longer than `drain_s`. `confirm_s` None: the knee is what the search
    found, not tried again."""

    rounds: int
    ladder: tuple[int, ...]
    ladder_s: float
    probe_s: float
    most_probes: int
    precision: float
    concurrency_tries: int
    block_s: float
    short_blocks: int
    warm_up_s: float
    drain_s: float
    confirm_s: float | None
    streams: tuple[int, ...]
    streams_s: float


FULL = Sizes(
    rounds=3,
    ladder=(1, 2, 4, 8, 16, 32, 64, 128),
    ladder_s=30,
    probe_s=60,
    most_probes=8,
    precision=1.05,
    concurrency_tries=3,
    block_s=60,
    short_blocks=5,
    warm_up_s=10,
    drain_s=60,
    confirm_s=300,
    streams=(1, 16, 64, 256, 1024),
    streams_s=30,
)
QUICK = Sizes(
    rounds=1,
    ladder=(1, 4, 16, 64),
    ladder_s=6,
    probe_s=12,
    most_probes=5,
    precision=1.1,
    concurrency_tries=2,
    block_s=8,
    short_blocks=3,
    warm_up_s=2,
    drain_s=10,
    confirm_s=None,
    streams=(1, 64),
    streams_s=8,
)


@dataclass(slots=True, kw_only=True)
class Findings:
    """Of one server, all rounds together. `knees` and `concurrencies` have one entry a round; 0: not even the least
    load."""

    about: str = ""
    flags: list[str] = field(default_factory=list)
    role: str = ""
    batches: bool = True
    absent: str | None = None
    ready_s: list[float] = field(default_factory=list)
    knees: list[float] = field(default_factory=list)
    concurrencies: list[int] = field(default_factory=list)
    ladder: list[Point] = field(default_factory=list)
    sweep: list[Point] = field(default_factory=list)
    ablation: list[Point] = field(default_factory=list)

    @property
    def knee(self) -> float | None:
        return median(self.knees) if self.knees else None

    @property
    def concurrency(self) -> float | None:
        return median(self.concurrencies) if self.concurrencies else None


def climb(generator: Generator, server: RunningServer, sizes: Sizes, found: Findings) -> None:
    """Closed loops of more and more users, and between them the most that the SLO bears."""
    slo = generator.workload.slo
    known: dict[int, bool] = {}

    def measure(concurrency: int) -> bool:
        point = generator.measure(server, concurrency=concurrency, warm_up_s=sizes.warm_up_s, duration_s=sizes.ladder_s)
        found.ladder.append(point)
        known[concurrency] = point.keeps(slo)
        return known[concurrency]

    for concurrency in sizes.ladder:
        measure(concurrency)
    search = find_concurrency(measure, dict(known), most_tries=sizes.concurrency_tries)
    found.concurrencies.append(int(search.best or 0))


def sweep(generator: Generator, server: RunningServer, sizes: Sizes, found: Findings) -> None:
    """Open loops up to the knee, which in a full run is then tried over the whole length with every seed."""
    slo = generator.workload.slo
    most = max((point.figures.get("request_throughput", 0.0) for point in found.ladder), default=0.0)

    def keeps(rate: float, duration_s: float = sizes.probe_s) -> bool:
        point = generator.measure(server, rate=rate, warm_up_s=sizes.warm_up_s, duration_s=duration_s)
        found.sweep.append(point)
        return point.keeps(slo)

    start = LITTLE_LOAD * most or generator.workload.schedule.rate or 1.0
    search = find_rate(keeps, start, most_tries=sizes.most_probes, precision=sizes.precision)
    knee = search.best
    if knee is not None and sizes.confirm_s is not None:
        length_s = sizes.confirm_s
        knee = confirmed(lambda rate: all(keeps(rate, length_s) for _ in generator.workload.seeds), knee, most_tries=4)
    found.knees.append(knee or 0.0)


def short_prompts(generator: Generator, server: RunningServer, sizes: Sizes) -> dict[str, Any]:
    """The same server, block by block: routed, every request on the full path, and that with the exact head too."""
    arms: Mapping[str, dict[str, Any]] = {
        "routed": {"cache": False},
        "full path": {"cache": False, "path": "full"},
        "all-full": {"cache": False, "quality": "full"},
    }
    blocks: list[dict[str, float]] = []
    for number in range(sizes.short_blocks):
        seen: dict[str, float] = {}
        for name in in_turn(list(arms), number):
            point = generator.measure(
                server,
                concurrency=SHORT_CONCURRENCY,
                warm_up_s=sizes.warm_up_s,
                duration_s=sizes.block_s,
                body={"fenhe": arms[name]},
            )
            if "median_e2el_ms" in point.figures:
                seen[name] = point.figures["median_e2el_ms"]
        if len(seen) == len(arms):
            blocks.append(seen)
    return {
        "median_e2el_ms": blocks,
        "speedups": [block["all-full"] / block["routed"] for block in blocks],
        "speedups_of_path": [block["full path"] / block["routed"] for block in blocks],
    }


def ablate(generator: Generator, server: RunningServer, sizes: Sizes, found: Findings) -> None:
    """One closed loop, the same for every arm."""
    found.ablation.append(
        generator.measure(server, concurrency=ABLATION_CONCURRENCY, warm_up_s=sizes.warm_up_s, duration_s=sizes.block_s)
    )


def in_turn(names: Sequence[str], number: int) -> Sequence[str]:
    """There and back: every second round in the other order, so that no server always comes first."""
    return names if number % 2 == 0 else names[::-1]


Stage = Callable[[Generator, RunningServer, Sizes, Findings], None]


def expected_s(workload: Workload, sizes: Sizes, names: Sequence[str], arms: int) -> float:
    """About how long a comparison takes."""
    start_s, more_s = 8.0, 4.0 + sizes.warm_up_s
    ladder_s = (len(sizes.ladder) + sizes.concurrency_tries) * (sizes.ladder_s + more_s)
    sweep_s = sizes.most_probes * (sizes.probe_s + more_s)
    confirm_s = 0.0 if sizes.confirm_s is None else 1.5 * len(workload.seeds) * (sizes.confirm_s + more_s)
    per_server_s = start_s + ladder_s + sweep_s + confirm_s
    short_s = start_s + 3 * sizes.short_blocks * (sizes.block_s + more_s)
    ablation_s = arms * (start_s + sizes.block_s + more_s)
    overhead_s = start_s + len(sizes.streams) * (sizes.streams_s + 20.0)
    return sizes.rounds * (len(names) * per_server_s + ablation_s) + short_s + overhead_s
