"""One measurement: a generator process pinned to its own core, and the results that it leaves."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.comparison.servers import Place, RunningServer, pinned
from loadtest.measure.verdict import Status, keeps_slo
from loadtest.traffic.workload import Slo, Workload

LIMIT_S = 3600.0


@dataclass(slots=True, kw_only=True, frozen=True)
class Point:
    """What a run found: its results, less what is the same for all of them."""

    rate: float | None
    concurrency: int | None
    seed: int
    status: Status
    figures: dict[str, float]
    quantiles: dict[str, list[float]]
    by_task: dict[str, dict[str, float]]
    problems: list[str]
    resident_mib: float

    @property
    def counts(self) -> bool:
        return self.status not in (Status.INVALID, Status.CANNOT_MEASURE)

    def keeps(self, slo: Slo) -> bool:
        return self.status is not Status.INVALID and keeps_slo(self.figures, slo)


@dataclass(slots=True, kw_only=True)
class Generator:
    """Puts load on servers, one run at a time. Every run has a seed of its own, so that no server knows its prompts."""

    place: Place
    workload: Workload
    file: str
    report: Callable[[str], None]
    drain_s: float = 60.0
    _seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    def measure(
        self,
        server: RunningServer,
        *,
        rate: float | None = None,
        concurrency: int | None = None,
        warm_up_s: float,
        duration_s: float,
        body: Mapping[str, Any] | None = None,
        more: Sequence[str] = (),
        again: bool = True,
    ) -> Point:
        """An invalid run is repeated once. `more` are further options of `fenhe loadtest run`."""
        seed, out = next(self._seeds), self.place.folder / "out.json"
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", "loadtest", "run", "--url", server.url, "--workload", self.file]
        command += ["--model", server.model, "--seed", str(seed), "--json", str(out), *more]
        command += ["--warm-up", str(warm_up_s), "--duration", str(duration_s), "--drain", str(self.drain_s)]
        command += [] if rate is None else ["--rate", f"{rate:.4f}"]
        command += [] if concurrency is None else ["--concurrency", str(concurrency)]
        for name, value in (dict(server.spec.body) | dict(body or {})).items():
            command += ["--body", f"{name}={json.dumps(value)}"]
        done = subprocess.run(
            pinned(self.place.generator_cores, command), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        point = _point(out, done, seed, rate, concurrency, server.resident_mib())
        self.report(f"  {server.name} {describe(point)}")
        if point.status is Status.INVALID and again:
            return self.measure(
                server,
                rate=rate,
                concurrency=concurrency,
                warm_up_s=warm_up_s,
                duration_s=duration_s,
                body=body,
                more=more,
                again=False,
            )
        return point


def _point(
    out: Path,
    done: "subprocess.CompletedProcess[str]",
    seed: int,
    rate: float | None,
    concurrency: int | None,
    resident_mib: float,
) -> Point:
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    cannot = found.get("cannot_measure") if found else done.stderr.strip()[-300:]
    problems = [*([cannot] if cannot else []), *found.get("invalid_because", []), *found.get("missed", [])]
    return Point(
        rate=rate,
        concurrency=concurrency,
        seed=seed,
        status=Status(found.get("status", Status.CANNOT_MEASURE)),
        figures=found.get("figures", {}),
        quantiles=found.get("quantiles", {}),
        by_task=found.get("by_task", {}),
        problems=problems,
        resident_mib=round(resident_mib, 1),
    )


def describe(point: Point) -> str:
    load = f"{point.rate:.2f}/s" if point.rate is not None else f"{point.concurrency} at once"
    seen = point.figures
    told = [
        f"{seen[name]:{form}} {unit}"
        for name, form, unit in (
            ("request_goodput", ".2f", "good/s"),
            ("output_throughput", ".0f", "tokens/s"),
            ("p95_ttft_ms", ".0f", "ms p95 TTFT"),
            ("p95_tpot_ms", ".1f", "ms p95 TPOT"),
            ("success_rate", ".2%", "success"),
        )
        if name in seen
    ]
    return f"{load}: {', '.join([*told, point.status.name.lower().replace('_', ' '), *point.problems[:2]])}"
