"""`fenhe loadtest overhead`: what the server itself adds, on an engine that gives its tokens at set times.

A token's set time is: request sent + first token + number * inter-token. What it comes later than that was added by the
server: decoding, routing, admission, the way from the engine to the client, and the client's own reading.
Connections are kept, as clients do.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from loadtest.comparison.places import add_core_options, cores_of
from loadtest.comparison.servers import Place, ServerSpec, pinned, started
from loadtest.generator.results import machine, versions
from loadtest.measure.record import Record
from loadtest.measure.verdict import Status
from loadtest.served import folder_until_the_end
from loadtest.traffic.workload import Validity

FIRST_MS = 200.0
GAP_MS = 50.0
MOST_TOKENS_PER_S = 4000.0
"""With more streams the tokens of each come less often, or the generator's core is the limit."""
ANSWER_TOKENS = 64
STREAMS = (1, 16, 64, 256, 1024)
AIM_STREAMS, AIM_MS = 64, 5.0


def gap_ms(streams: int) -> float:
    return max(GAP_MS, 1000 * streams / MOST_TOKENS_PER_S)


def warm_up_s(streams: int) -> float:
    """One and a half answers, so that streams begin one after the other and the first ones have ended."""
    return 4.0 + 1.5 * (FIRST_MS + ANSWER_TOKENS * gap_ms(streams)) / 1000


def simulator(streams: int) -> ServerSpec:
    return ServerSpec(
        about=f"fenhe on a scripted engine: first token after {FIRST_MS:g} ms, one each {gap_ms(streams):g} ms",
        role="ours",
        batches=True,
        command=[
            "{fenhe}",
            "simulate",
            "--port",
            "{port}",
            "--first-token-ms",
            str(FIRST_MS),
            "--inter-token-ms",
            str(gap_ms(streams)),
        ],
        environment={"FENHE_LOG_LEVEL": "warning"},
    )


def added(
    place: Place, all_streams: Sequence[int], duration_s: float, report: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """By number of streams, what was added and how many requests were dropped."""
    found = {}
    for streams in all_streams:
        with started("simulated", simulator(streams), place) as server:
            found[str(streams)] = _measure(place, server.url, streams, duration_s)
        report(f"  {streams} streams: {describe(found[str(streams)])}")
    return found


def _measure(place: Place, url: str, streams: int, duration_s: float) -> dict[str, Any]:
    records = place.folder / "overhead.records"
    records.unlink(missing_ok=True)
    start_s = warm_up_s(streams)
    end_s = start_s + duration_s
    command = [sys.executable, "-m", "loadtest.generator.timed_streams", "--url", url, "--workload", "overhead"]
    command += ["--streams", str(streams), "--ramp", str(start_s / 2), "--end", str(end_s), "--records", str(records)]
    command += ["--prepare", str(int(streams * (2 + end_s * 1000 / (FIRST_MS + ANSWER_TOKENS * gap_ms(streams)))))]
    done = subprocess.run(
        pinned(place.generator_cores, command), capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        return {"problem": done.stderr.strip()[-300:], "num_dropped": None}
    read = [msgspec.json.decode(line, type=Record) for line in records.read_bytes().splitlines()]
    cpu_share = json.loads(done.stdout)["generator_cpu_share"]
    busy = f"the generator took {cpu_share:.0%} of its core" if cpu_share > Validity().most_generator_cpu else ""
    return {
        **summary([one for one in read if start_s <= one.scheduled_s < end_s], FIRST_MS, gap_ms(streams)),
        "inter_token_ms": gap_ms(streams),
        "generator_cpu_share": cpu_share,
        "problem": busy,
    }


def summary(records: Sequence[Record], first_ms: float, inter_token_ms: float) -> dict[str, Any]:
    """Of requests that came whole. `added_ms` is of tokens, `added_ttft_ms` of first tokens."""
    whole = [record for record in records if record.is_complete]
    tokens = np.asarray([late for record in whole for late in lateness_ms(record, first_ms, inter_token_ms)])
    firsts = [late for record in whole for late in lateness_ms(record, first_ms, inter_token_ms)[:1]]
    dropped = sum(record.failure is not None for record in records)
    if not len(tokens):
        return {"num_requests": len(records), "num_dropped": dropped}
    return {
        "num_requests": len(records),
        "num_dropped": dropped,
        "num_tokens": len(tokens),
        "p50_added_ms": float(np.percentile(tokens, 50)),
        "p99_added_ms": float(np.percentile(tokens, 99)),
        "p50_added_ttft_ms": float(median(firsts)),
        "p99_added_ttft_ms": float(np.percentile(firsts, 99)),
    }


def lateness_ms(record: Record, first_ms: float, inter_token_ms: float) -> list[float]:
    """By token. Where several came in one chunk, only the first and the last one are known."""
    assert record.first_s is not None
    first = (record.first_s - record.sent_s) * 1000 - first_ms
    if len(record.gaps_s) + 1 == record.num_answer_tokens:
        drift = np.cumsum([gap * 1000 - inter_token_ms for gap in record.gaps_s])
        return [first, *(first + drift).tolist()]
    assert record.last_s is not None
    last = (record.last_s - record.sent_s) * 1000 - first_ms - inter_token_ms * (record.num_answer_tokens - 1)
    return [first, last]


def describe(found: dict[str, Any]) -> str:
    if "p99_added_ms" not in found:
        return f"nothing measured: {found.get('problem')}"
    told = (
        f"added to a token p50 {found['p50_added_ms']:.2f} ms, p99 {found['p99_added_ms']:.2f} ms; to the first "
        f"p50 {found['p50_added_ttft_ms']:.2f}, p99 {found['p99_added_ttft_ms']:.2f}; one each "
        f"{found['inter_token_ms']:g} ms; {found['num_dropped']} of {found['num_requests']} dropped; "
        f"generator {found['generator_cpu_share']:.0%} of its core"
    )
    return told + (f"; {found['problem']}" if found["problem"] else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--streams", default=",".join(map(str, STREAMS)), help="default: %(default)s")
    parser.add_argument("--duration", type=float, default=30.0, metavar="S", help="of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    add_core_options(parser)


def run(options: argparse.Namespace) -> int:
    try:
        streams = [int(part) for part in options.streams.split(",")]
        with folder_until_the_end("fenhe-overhead-") as folder:
            server, generator = cores_of(options)
            place = Place(server_cores=server, generator_cores=generator, folder=folder, student=Path(), gguf=None)
            found = added(place, streams, options.duration, lambda line: print(line, flush=True))
    except (ValueError, OSError) as error:
        print(f"fenhe loadtest: {error}", file=sys.stderr)
        return Status.CANNOT_MEASURE
    for line in judged(found):
        print(line)
    if options.json is not None:
        document = {"machine": machine(), "versions": versions(), "streams": found}
        options.json.write_text(json.dumps(document, indent=1))
    return Status.GOOD if all("p99_added_ms" in one for one in found.values()) else Status.CANNOT_MEASURE


def judged(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    aim = found.get(str(AIM_STREAMS), {}).get("p99_added_ms")
    if aim is not None:
        yield f"aim at {AIM_STREAMS} streams: p99 below {AIM_MS:g} ms: {'reached' if aim < AIM_MS else 'missed'}"
    most = max(found, key=int)
    dropped = found[most].get("num_dropped")
    if dropped is not None:
        yield f"aim at {most} streams: nothing dropped: {'reached' if dropped == 0 else f'missed, {dropped}'}"
