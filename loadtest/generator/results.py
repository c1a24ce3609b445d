"""From the records of a run to its document, and to what is printed of it."""

import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadtest.measure.figures import FORMULAS, LATENCIES, figures_of, late_share, latencies_ms, measured
from loadtest.measure.record import Record
from loadtest.measure.verdict import Status, cannot_measure, invalid_because, missed, remarks
from loadtest.traffic.workload import Workload

PACKAGES = ("fenhe", "locust", "gevent", "geventhttpclient", "llama-cpp-python", "openvino-genai", "vllm")
GRID = tuple(range(101))


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return {
        "cpu": next(names, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.platform(),
        "load_1min": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def document(
    records: Sequence[Record], workload: Workload, *, url: str, seed: int, generator_cpu_share: float
) -> dict[str, Any]:
    """All that is known of a run. `status` is the exit status that it deserves."""
    start_s = workload.schedule.warm_up_s
    end_s = start_s + workload.schedule.duration_s
    inside = measured(records, start_s, end_s)
    figures = figures_of(records, start_s, end_s, workload.slo) | {"generator_cpu_share": generator_cpu_share}
    if workload.schedule.is_open:
        figures |= late_share(records, start_s, end_s)
    cannot, invalid = cannot_measure(inside), invalid_because(figures, workload)
    misses = missed(figures, workload.thresholds)

    def grouped(key: Callable[[Record], str | None]) -> dict[str, Any]:
        names = sorted({name for record in inside if (name := key(record)) is not None})
        return {
            name: figures_of([record for record in inside if key(record) == name], start_s, end_s, workload.slo)
            for name in names
        }

    return {
        "machine": machine(),
        "versions": versions(),
        "url": url,
        "seed": seed,
        "workload": msgspec.to_builtins(workload),
        "status": int(
            Status.CANNOT_MEASURE if cannot else Status.INVALID if invalid else Status.MISSED if misses else Status.GOOD
        ),
        "cannot_measure": cannot,
        "invalid_because": invalid,
        "missed": misses,
        "remarks": list(remarks(figures, workload, inside)),
        "figures": figures,
        "by_task": grouped(lambda record: record.task),
        "by_language": grouped(lambda record: record.language),
        "by_path": grouped(lambda record: record.path),
        "by_tenant": grouped(lambda record: record.tenant),
        "cache": dict(Counter(record.cache for record in inside if record.cache is not None)),
        "failures": dict(Counter(record.failure for record in inside if record.failure is not None)),
        "quantiles": {
            f"{name}_ms": [round(float(value), 3) for value in np.percentile(values, GRID)]
            for name in LATENCIES
            if (values := latencies_ms(inside, name))
        },
        "formulas": FORMULAS,
    }


COLUMNS = (
    ("requests", "completed", "{:.0f}"),
    ("failed", "failed", "{:.0f}"),
    ("good/s", "request_goodput", "{:.2f}"),
    ("tokens/s", "output_throughput", "{:.1f}"),
    ("TTFT p50", "median_ttft_ms", "{:.0f} ms"),
    ("p95", "p95_ttft_ms", "{:.0f} ms"),
    ("TPOT p50", "median_tpot_ms", "{:.1f} ms"),
    ("p95", "p95_tpot_ms", "{:.1f} ms"),
    ("ITL p99", "p99_itl_ms", "{:.1f} ms"),
    ("E2E p50", "median_e2el_ms", "{:.0f} ms"),
    ("p99", "p99_e2el_ms", "{:.0f} ms"),
)
"""Heading, figure and form."""


def cells(figures: dict[str, float]) -> list[str]:
    return [form.format(figures[name]) if name in figures else "-" for _, name, form in COLUMNS]


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What a person reads after a run."""
    rows = [["", *(heading for heading, _, _ in COLUMNS)], ["all", *cells(found["figures"])]]
    for group in ("by_task", "by_path"):
        rows += [[name, *cells(figures)] for name, figures in found[group].items() if len(found[group]) > 1]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            cell.ljust(width) if not number else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
    figures = found["figures"]
    told = [f"success {figures.get('success_rate', 0.0):.2%}"]
    told += [f"late {figures['late_share']:.2%}"] if "late_share" in figures else []
    told += [f"generator {figures['generator_cpu_share']:.0%} of its core"]
    told += (
        [f"cache {', '.join(f'{name} {number}' for name, number in found['cache'].items())}"] if found["cache"] else []
    )
    yield "; ".join(told)
    yield from (f"{number} x {failure}" for failure, number in list(found["failures"].items())[:5])
    yield from (f"remark: {remark}" for remark in found["remarks"])
    yield from (f"INVALID: {problem}" for problem in found["invalid_because"])
    yield from (f"missed: {problem}" for problem in found["missed"])
    if found["cannot_measure"]:
        yield f"cannot be measured: {found['cannot_measure']}"
