"""`fenhe loadtest compare`: fenhe beside the servers that one would use instead, on the same cores."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from loadtest.coldstart import cold_starts
from loadtest.comparison.figures import figures, table, verdicts
from loadtest.comparison.markdown import markdown
from loadtest.comparison.measuring import Generator
from loadtest.comparison.page import write_page
from loadtest.comparison.pictures import write_pictures
from loadtest.comparison.places import add_place_options, place_of
from loadtest.comparison.servers import AbsentServer, Place, ServerSpec, read_servers, started
from loadtest.comparison.stages import (
    FULL,
    QUICK,
    Findings,
    Sizes,
    Stage,
    ablate,
    climb,
    expected_s,
    in_turn,
    short_prompts,
    sweep,
)
from loadtest.generator.results import machine, versions
from loadtest.measure.figures import FORMULAS
from loadtest.measure.verdict import Status
from loadtest.overhead import added
from loadtest.served import folder_until_the_end
from loadtest.traffic.reading import WorkloadError, read_workload

SERVERS = ("routed", "full", "full-uncached", "one-at-a-time", "llama-cpp-server", "openvino", "vllm", "fenhe-vllm")
QUICK_SERVERS = SERVERS[:-2]
"""Without those that take longest to start."""
ABLATION = ("routed", "unbatched", "full", "routed-uncached")
STAGES = ("ladder", "sweep", "short", "ablation", "overhead", "coldstart")


@dataclass(slots=True, kw_only=True)
class Comparison:
    """All that was found so far; `write` may be called at any time."""

    specs: dict[str, ServerSpec]
    place: Place
    sizes: Sizes
    workload: str
    report: Callable[[str], None]
    found: dict[str, Findings] = field(default_factory=dict)
    short: dict[str, Any] | None = None
    overhead: dict[str, Any] | None = None
    cold: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)

    def visit(self, name: str, stages: Sequence[Stage]) -> None:
        """Start a server, measure, and stop it. One that cannot run is noted as absent."""
        spec = self.specs[name]
        findings = self.found.setdefault(name, Findings(about=spec.about, role=spec.role, batches=spec.batches))
        findings.flags = self.place.fill(name, spec.command, 0)
        if findings.absent is not None:
            return
        try:
            with started(name, spec, self.place) as server:
                findings.ready_s.append(server.ready_s)
                self.report(f"{name}: ready after {server.ready_s:.1f} s")
                for stage in stages:
                    stage(self.generator(), server, self.sizes, findings)
        except AbsentServer as absent:
            findings.absent = str(absent)
            self.report(f"{name}: absent: {absent}")

    def generator(self, workload: str | None = None) -> Generator:
        file = workload or self.workload
        seeds = iter(range(int(time.time()) % 10**6 * 1000, 10**10))
        return Generator(
            place=self.place,
            workload=read_workload(file),
            file=file,
            report=self.report,
            drain_s=self.sizes.drain_s,
            _seeds=seeds,
        )

    def measure_short_prompts(self) -> None:
        with started("routed", self.specs["routed"], self.place) as server:
            self.short = short_prompts(self.generator("short"), server, self.sizes)

    def measure_overhead(self) -> None:
        self.overhead = added(self.place, self.sizes.streams, self.sizes.streams_s, self.report)

    def measure_cold_starts(self) -> None:
        self.cold = cold_starts(self.place, self.place.student, self.sizes.rounds, self.report)

    def attempt(self, name: str, measure: Callable[[], None]) -> None:
        """One that fails does not spoil the others."""
        try:
            measure()
        except (AbsentServer, RuntimeError, OSError) as error:
            self.problems.append(f"{name}: {error}")
            self.report(self.problems[-1])

    def document(self) -> dict[str, Any]:
        named, notes = figures(self.found, self.short, self.overhead, self.cold)
        return {
            "machine": machine(),
            "versions": versions(),
            "command": sys.argv[1:],
            "cores": {"server": list(self.place.server_cores), "generator": list(self.place.generator_cores)},
            "sizes": asdict(self.sizes),
            "figures": named,
            "notes": [*notes, *self.problems, *self._invalid_runs()],
            "servers": {
                name: asdict(one) | {"knee": one.knee, "concurrency": one.concurrency}
                for name, one in self.found.items()
            },
            "short": self.short,
            "overhead": self.overhead,
            "coldstart": self.cold,
            "formulas": FORMULAS,
        }

    def _invalid_runs(self) -> Iterator[str]:
        """A reader should know: what stayed invalid when repeated counts as a load that was not borne."""
        for name, one in self.found.items():
            points = (*one.ladder, *one.sweep, *one.ablation)
            num_invalid = sum(point.status is Status.INVALID for point in points)
            if num_invalid:
                yield f"{name}: {num_invalid} of {len(points)} runs were invalid even when repeated"

    def write(self, json_file: Path | None, page: Path | None) -> None:
        document = self.document()
        if json_file is not None:
            json_file.write_text(json.dumps(document, indent=1), encoding="utf-8")
        if page is not None:
            write_page(page, document, self.found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    told = f"names with commas (default: {','.join(SERVERS)}; with --quick not the last two)"
    parser.add_argument("--servers", help=told)
    parser.add_argument("--servers-file", type=Path, metavar="FILE", help="more servers, as in servers.toml")
    parser.add_argument("--stages", default=",".join(STAGES), help="names with commas (default: %(default)s)")
    parser.add_argument("--workload", default="headline", help="of ladder, sweep and ablation (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="short: one round, seconds for minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 3, with --quick 1")
    parser.add_argument("--sizes", default="{}", metavar="JSON", help='other sizes, such as {"probe_s": 20}')
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables for docs/performance.md here")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write each picture there too, as SVG")
    parser.add_argument("--plan", action="store_true", help="only say what would be done and how long it takes")
    add_place_options(parser)


def run(options: argparse.Namespace) -> int:
    with folder_until_the_end("fenhe-compare-") as folder:
        try:
            comparison, names, stages = prepared(options, folder)
        except (ValueError, OSError, WorkloadError) as error:
            print(f"fenhe loadtest: {error}", file=sys.stderr)
            return Status.CANNOT_MEASURE
        arms = len(ABLATION) if "ablation" in stages else 0
        workload = read_workload(options.workload)
        told_s = expected_s(workload, comparison.sizes, names, arms)
        report(f"{', '.join(names)}; {', '.join(stages)}: about {told_s / 60:.0f} minutes")
        if options.plan:
            return Status.GOOD
        compare(comparison, names, stages, lambda: comparison.write(options.json, options.html))
        print("\n".join((*table(comparison.found), "", *verdicts(comparison.document()["figures"]))))
        print("\n".join(comparison.document()["notes"]))
        if options.markdown is not None:
            options.markdown.write_text(markdown(comparison.document(), comparison.found), encoding="utf-8")
        if options.pictures is not None:
            write_pictures(options.pictures, comparison.found)
    return Status.GOOD


def prepared(options: argparse.Namespace, folder: Path) -> tuple[Comparison, list[str], list[str]]:
    """Raises: ValueError, OSError, WorkloadError."""
    specs = read_servers(options.servers_file)
    usual = QUICK_SERVERS if options.quick else SERVERS
    names, stages = (options.servers or ",".join(usual)).split(","), options.stages.split(",")
    unknown = [f"no server is called {name!r}" for name in names if name not in specs]
    unknown += [f"no stage is called {stage!r}" for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"{'; '.join(unknown)}; there are {', '.join(specs)} and {', '.join(STAGES)}")
    for file in (options.json, options.html, options.markdown):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{file}: there is no such folder")
    read_workload(options.workload)
    changes = json.loads(options.sizes) | ({} if options.rounds is None else {"rounds": options.rounds})
    try:
        sizes = msgspec.convert(asdict(QUICK if options.quick else FULL) | changes, Sizes)
    except msgspec.ValidationError as error:
        raise ValueError(f"--sizes: {error}") from error
    place = place_of(options, folder)
    return Comparison(specs=specs, place=place, sizes=sizes, workload=options.workload, report=report), names, stages


def compare(comparison: Comparison, names: list[str], stages: Sequence[str], save: Callable[[], None]) -> None:
    """Round by round, saving after each server."""
    loads: list[Stage] = [stage for name, stage in (("ladder", climb), ("sweep", sweep)) if name in stages]
    for number in range(comparison.sizes.rounds):
        report(f"round {number + 1} of {comparison.sizes.rounds}")
        for name in in_turn(names, number) if loads else ():
            comparison.visit(name, loads)
            save()
        for name in in_turn(ABLATION, number) if "ablation" in stages else ():
            comparison.visit(name, [ablate])
            save()
    for name, measure in (
        ("short", comparison.measure_short_prompts),
        ("overhead", comparison.measure_overhead),
        ("coldstart", comparison.measure_cold_starts),
    ):
        if name in stages:
            comparison.attempt(name, measure)
            save()


def report(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
