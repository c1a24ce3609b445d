"""`fenhe bench remote`: chunks of a scripted upstream, read from it directly and through a remote student, in turns.

The upstream writes into each chunk when it was sent; the client notes when it came. Both clocks are the machine's own
monotonic one. The server has a core to itself where there are two, client and upstream share the other.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.command import installed_command, installed_version
from bench.engines.served import free_port
from bench.engines.sse_client import http_request, run_job
from bench.machine import note_busy
from bench.options import add_debug, add_json, add_rounds, find_too_small, find_unwritable
from bench.remote.upstream import MODEL
from bench.report import (
    describe_setting,
    fill_document,
    list_formulas,
    list_notes,
    report_progress,
    show_number,
    show_spread,
    write_document,
)
from bench.rounds import RoundFigures, count_rounds, gather, medians
from engines.machine import describe_machine
from models.errors import ConfigError

STREAMS = (1, 16, 64)
NUM_CHUNKS = 100
SPREAD_S = 1.0
FIRST_S, GAP_S = 0.05, 0.03
START_LIMIT_S = 60.0
SETTINGS = f"""
port = {{port}}
[router]
enabled = false
[limits]
max_requests = {{most}}
[[student]]
name = "far"
engine = "remote"
[student.remote]
urls = ["http://127.0.0.1:{{upstream}}/v1"]
model = "{MODEL}"
max_running = {{most}}
"""
FORMULAS = {
    "direct_p50_ms.N, direct_p99_ms.N": "from a chunk's sending to its arrival, N streams, without fenhe",
    "through_p50_ms.N, through_p99_ms.N": "the same through a remote student",
    "added_p50_ms.N, added_p99_ms.N": "the difference of the two in one round",
    "added_first_ms.N": "what the first chunk of a stream takes longer, from the request on; median of the streams",
}


@dataclass(slots=True, kw_only=True, frozen=True)
class Delays:
    """`first_s` of every stream, `chunks_s` of every chunk."""

    first_s: list[float]
    chunks_s: list[float]


def run(arguments: list[str]) -> int:
    """Raises: ConfigError."""
    options = _read(arguments)
    with _running(options.streams) as (upstream_port, port):
        numbers = count_rounds(options.rounds, report_progress)
        rounds = [_round(upstream_port, port, options.streams) for _ in numbers]
    _report(gather(rounds), options.json)
    return 0


def _read(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fenhe bench remote", description=__doc__)
    add_rounds(parser, 5, "rounds, in each of which both ways take their turn (default 5)")
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS), metavar="N", help="streams at once")
    add_json(parser)
    add_debug(parser)
    options = parser.parse_args(arguments)
    problems = [*find_too_small(options, {"rounds": 1}), *find_unwritable(options.json)]
    problems += [f"--streams must be at least 1, not {number}" for number in options.streams if number < 1]
    if problems:
        raise ConfigError(*problems)
    return options


def _round(upstream_port: int, port: int, streams: Sequence[int]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for number in streams:
        direct, through = _measure(upstream_port, MODEL, number), _measure(port, "far", number)
        for name, delays in (("direct", direct), ("through", through)):
            figures[f"{name}_p50_ms.{number}"] = statistics.median(delays.chunks_s) * 1000
            figures[f"{name}_p99_ms.{number}"] = _p99(delays.chunks_s) * 1000
        for part in ("p50", "p99"):
            figures[f"added_{part}_ms.{number}"] = (
                figures[f"through_{part}_ms.{number}"] - figures[f"direct_{part}_ms.{number}"]
            )
        added = statistics.median(through.first_s) - statistics.median(direct.first_s)
        figures[f"added_first_ms.{number}"] = added * 1000
    return figures


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _measure(port: int, model: str, num_streams: int) -> Delays:
    """Of streams that begin one after another within a second, and then run side by side."""
    messages = [{"role": "user", "content": "Say when."}]
    body = {"model": model, "messages": messages, "stream": True, "max_tokens": NUM_CHUNKS, "fenhe": {"cache": False}}
    request = http_request(port, "/v1/chat/completions", body)
    answers = asyncio.run(_spread(port, request, num_streams))
    shift_s = time.monotonic() - time.perf_counter()
    found = [_read_delays(pieces, started_s, shift_s) for started_s, pieces in answers]
    return Delays(first_s=[first for first, _ in found], chunks_s=[one for _, chunks in found for one in chunks])


Pieces = list[tuple[float, bytes]]


async def _spread(port: int, request: bytes, num_streams: int) -> list[tuple[float, Pieces]]:
    async def one(number: int) -> tuple[float, Pieces]:
        await asyncio.sleep(number * SPREAD_S / num_streams)
        started_s = time.perf_counter()
        return started_s, (await run_job(port, [request]))[0]

    return await asyncio.gather(*(one(number) for number in range(num_streams)))


def _read_delays(pieces: Pieces, started_s: float, shift_s: float) -> tuple[float, list[float]]:
    """When the first chunk came, from the request on, and how long each chunk was on its way.

    Raises: RuntimeError for a stream that is not whole.
    """
    delays, first_s, rest = [], None, b""
    for moment_s, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            content = msgspec.json.decode(line[6:])["choices"][0]["delta"].get("content")
            if content is not None:
                first_s = first_s or moment_s - started_s
                delays.append(moment_s + shift_s - float(content))
    if len(delays) != NUM_CHUNKS or first_s is None:
        raise RuntimeError(f"a stream had {len(delays)} of {NUM_CHUNKS} chunks: {pieces[-1:]!r:.300}")
    return first_s, delays


@contextlib.contextmanager
def _running(streams: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ports of the upstream and of a server with one remote student."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as held:
        script = [sys.executable, "-m", "bench.remote.upstream", str(FIRST_S), str(GAP_S)]
        upstream = held.enter_context(_process(script, cores[:1], pipe=True))
        assert upstream.stdout is not None
        upstream_port = int(upstream.stdout.readline())
        folder, port = Path(held.enter_context(tempfile.TemporaryDirectory())), free_port()
        settings = folder / "fenhe.toml"
        settings.write_text(SETTINGS.format(port=port, upstream=upstream_port, most=max(512, *streams)))
        held.enter_context(_process([installed_command(), "serve", "--config", str(settings)], cores[-1:]))
        os.sched_setaffinity(0, cores[:1])
        held.callback(os.sched_setaffinity, 0, cores)
        _wait_until_answering(port)
        yield upstream_port, port


@contextlib.contextmanager
def _process(command: list[str], cores: Sequence[int], *, pipe: bool = False) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE if pipe else subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        os.sched_setaffinity(process.pid, set(cores))
        yield process
    finally:
        process.terminate()
        process.wait(20.0)
        if process.stdout is not None:
            process.stdout.close()


def _wait_until_answering(port: int) -> None:
    """Raises: RuntimeError when the server does not answer in time."""
    end_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError, RuntimeError):
            _measure(port, "far", 1)
            return
        time.sleep(0.2)
    raise RuntimeError(f"fenhe serve did not answer within {START_LIMIT_S:g} s")


def _report(found: RoundFigures, file: Path | None) -> None:
    machine, figures = describe_machine(), medians(found)
    notes = note_busy(machine, "delays are longer than they need be, and the difference is doubtful")
    versions = {"fenhe": installed_version()}
    lines = [*describe_setting(machine, versions), "", "what a remote student adds, in ms: median of the rounds"]
    lines += [_line(name, figures[name], values) for name, values in found.items() if name.startswith("added")]
    print("\n".join([*lines, *list_notes(notes), *list_formulas(FORMULAS, "medians over the rounds")]))
    write_document(file, fill_document(figures, found, FORMULAS, machine, versions, notes))


def _line(name: str, value: float, values: Sequence[float]) -> str:
    return f"  {name:<22} {show_number(value, 3):>8}  {show_spread(values, 3)}"
