"""`fenhe loadtest coldstart`: from the start of the process to the first token, and to all paths, with full and with
empty page cache.

The first token is asked for on any path that is loaded (`while_loading: degrade`), which is what progressive loading
gives; at the same time one on the full path, which is what it would be without.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from loadtest.comparison.places import add_place_options, place_of
from loadtest.comparison.servers import Place, pinned
from loadtest.generator.results import machine, versions
from loadtest.measure.verdict import Status
from loadtest.served import folder_until_the_end, free_port, installed_command

LIMIT_S = 600.0
POLL_S = 0.01
EARLY: Mapping[str, Any] = {"model": "auto", "fenhe": {"while_loading": "degrade", "quality": "fast", "cache": False}}
WHOLE: Mapping[str, Any] = {"model": "auto", "fenhe": {"while_loading": "wait", "quality": "full", "cache": False}}
DROP = Path("/proc/sys/vm/drop_caches")


def cold_starts(
    place: Place, student: Path, rounds: int, report: Callable[[str], None], *, is_empty: bool = False
) -> dict[str, Any]:
    """Seconds since the process was started, one entry a round. `is_empty`: its files are not in the page cache."""
    found: dict[str, Any] = {"student": str(student), "listening_s": [], "first_token_s": [], "all_loaded_s": []}
    for _ in range(rounds):
        if is_empty:
            found["emptied_by"] = empty_page_cache([student, *_installed_folders()])
        seen = start_once(place, student)
        for name, value in seen.items():
            found[name].append(value)
        report("  cold start: " + ", ".join(f"{name} {value:.2f}" for name, value in seen.items()))
    return found


def start_once(place: Place, student: Path) -> dict[str, float]:
    port = free_port()
    command = [installed_command(), "serve", "--student", str(student), "--port", str(port)]
    log = (place.folder / "coldstart.log").open("ab")
    begun_s = time.perf_counter()
    with log, subprocess.Popen(pinned(place.server_cores, command), stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            listening_s = _wait_for_port(port, process) - begun_s
            with ThreadPoolExecutor(max_workers=2) as pool:
                early, whole = (pool.submit(_first_token, port, body) for body in (EARLY, WHOLE))
                return {
                    "listening_s": listening_s,
                    "first_token_s": early.result() - begun_s,
                    "all_loaded_s": whole.result() - begun_s,
                }
        finally:
            process.send_signal(signal.SIGTERM)


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> float:
    """Raises: RuntimeError when the server ends or takes too long."""
    end_s = time.perf_counter() + LIMIT_S
    while time.perf_counter() < end_s and process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return time.perf_counter()
        time.sleep(POLL_S)
    raise RuntimeError(f"fenhe serve did not listen within {LIMIT_S:g} s, or ended with status {process.poll()}")


def _first_token(port: int, fields: Mapping[str, Any]) -> float:
    """When the first token came; one that shows no text ends the answer. Raises: RuntimeError when none comes."""
    body = {**fields, "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 1, "stream": True}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    # Nothing is encrypted, and reading the system's certificates would take longer than some starts have left.
    with httpx.stream("POST", url, json=body, timeout=LIMIT_S, verify=False) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"status {reply.status_code}: {reply.read()[:300]!r}")
        for line in reply.iter_lines():
            if line.startswith("data: {") and any(
                choice["delta"].get("content") or choice.get("finish_reason")
                for choice in json.loads(line[6:]).get("choices", ())
            ):
                return time.perf_counter()
    raise RuntimeError("the stream had no token")


def empty_page_cache(folders: list[Path]) -> str:
    """How: the system's whole cache where that is allowed, else the pages of these files, one by one."""
    subprocess.run(["sync"], check=False)
    with contextlib.suppress(OSError):
        DROP.write_text("3")
        return "drop_caches"
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file():
                _forget(file)
    return "posix_fadvise on the student's and Python's files"


def _forget(file: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _installed_folders() -> list[Path]:
    """Python's library, the installed packages, and what fenhe has compiled."""
    cache = Path(os.environ.get("FENHE_CACHE") or Path.home() / ".cache" / "fenhe")
    return [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")), cache / "native"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="with each cache (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    add_place_options(parser)


def run(options: argparse.Namespace) -> int:
    found = {}
    try:
        with folder_until_the_end("fenhe-coldstart-") as folder:
            place = place_of(options, folder)
            for name, is_empty in (("page cache full", False), ("page cache empty", True)):
                print(name, flush=True)
                found[name] = cold_starts(
                    place, place.student, options.rounds, lambda line: print(line, flush=True), is_empty=is_empty
                )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"fenhe loadtest: {error}", file=sys.stderr)
        return Status.CANNOT_MEASURE
    for name, one in found.items():
        told = ", ".join(f"{key} {median(one[key]):.2f}" for key in ("listening_s", "first_token_s", "all_loaded_s"))
        print(f"{name}, median: {told}" + (f" ({one['emptied_by']})" if "emptied_by" in one else ""))
    if options.json is not None:
        document = {"machine": machine(), "versions": versions(), "coldstart": found}
        options.json.write_text(json.dumps(document, indent=1))
    return Status.GOOD
