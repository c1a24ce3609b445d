"""Attacks that need a server of their own: its limits, its end, its disk."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from loadtest.chaos.attack import Attack, Observation, Target, at_most, each, only
from loadtest.chaos.bodies import chat, prose
from loadtest.chaos.framing import END, GET
from loadtest.chaos.sockets import SILENCE, connect, first_status, read_all, speak
from loadtest.served import ServedProcess
from loadtest.soak_kinds import CHAT

NUM_FILES = 160
NUM_CONNECTIONS = 140
GRACE_S = 2.0
END_S = GRACE_S + 2.0
SLACK_S = 1.0
"""For this process to notice, on a machine that does other things too."""
HOST_PATHS = ("/v1/models", "/health")
HOSTS = ("evil.example", "localhost", "127.0.0.1")
FLIPPED_BYTES = 4_000_000
DAMAGED_S = 60.0
SEALED = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


@contextlib.contextmanager
def server(
    student: Path | None, settings: Mapping[str, str] | None = None, within: Sequence[str] = ()
) -> Iterator[tuple[ServedProcess, Path]]:
    """A server without keys, and a folder of its own. It is ended whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="fenhe-chaos-"))
    arguments = [] if student is None else ["--student", str(student)]
    process = ServedProcess({"FENHE_LOG_LEVEL": "info", **(settings or {})}, folder / "server.log", arguments, within)
    try:
        yield process, folder
    finally:
        process.stop(10.0)
        shutil.rmtree(folder, ignore_errors=True)


def wait_ready(url: str, limit_s: float = 60.0) -> str:
    """`ready`, or what `/readyz` says at the end."""
    end_s, status = time.monotonic() + limit_s, SILENCE
    while status != "ready" and time.monotonic() < end_s:
        with contextlib.suppress(httpx.HTTPError):
            status = str(httpx.get(url + "/readyz", timeout=5.0).json()["status"])
        if status == "unhealthy":
            break
        time.sleep(0.1)
    return status


def few_files(student: Path | None, target: Target) -> Observation:
    """More connections than the process may open files."""
    within = ["sh", "-c", f'ulimit -Sn {NUM_FILES} && ulimit -Hn {NUM_FILES} && exec "$@"', "sh"]
    seen = Observation()
    with server(student, within=within) as (process, _):
        own = Target(url=process.wait_for_url())
        wait_ready(own.url)
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connect(own)) for _ in range(NUM_CONNECTIONS)]
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(GET + b"\r\n")
            time.sleep(1.0)
            for connection in connections:
                seen.note(first_status(read_all(connection, 0.05)))
        time.sleep(0.5)
        seen.note(f"afterwards {first_status(speak(own, [GET + END]))}")
        seen.note("warned" if "few open files" in process.log_text() else "not warned")
    return seen


def foreign_hosts(student: Path | None, target: Target) -> Observation:
    """A page's own name that points at a server without keys."""
    seen = Observation()
    with server(student) as (process, _):
        own = Target(url=process.wait_for_url())
        for path in HOST_PATHS:
            for host in HOSTS:
                raw = speak(own, [f"GET {path} HTTP/1.1\r\nhost: {host}\r\n".encode() + END])
                seen.note(f"{path} {host} {first_status(raw)}")
    return seen


def client_that_does_not_read(student: Path | None, target: Target) -> Observation:
    """SIGTERM while one client reads none of a long stream, and one none of a large answer."""
    seen = Observation()
    with server(student, {"FENHE_GRACE_S": str(GRACE_S)}) as (process, _):
        own = Target(url=process.wait_for_url())
        wait_ready(own.url)
        with contextlib.ExitStack() as stack:
            for request in (_stream_request(), _large_request()):
                connection = stack.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(5.0)
                connection.connect(own.address)
                connection.sendall(request)
            time.sleep(1.5)
            begun_s = time.monotonic()
            process.signal_end()
            status = process.wait(END_S + 10.0)
            seen.figures["s to the end"] = time.monotonic() - begun_s
        seen.note("lives on" if status is None else f"status {status}")
        if "Traceback" in process.log_text():
            seen.note("traceback")
    return seen


def _request(path: str, body: dict[str, Any]) -> bytes:
    content = httpx.Request("POST", "http://localhost", json=body).content
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(content) + content


def _stream_request() -> bytes:
    return _request(CHAT, chat("hello", max_tokens=4000, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20))


def _large_request() -> bytes:
    return _request("/tokenize", {"model": "auto", "prompt": prose(20_000), "return_token_strs": True})


def damaged_student(target: Target) -> Observation:
    """4 MB of a stage's weights flipped, in every precision; size and times kept."""
    headers = {"authorization": f"Bearer {target.admin_key}"}
    reply = httpx.get(target.url + "/admin/students", headers=headers, timeout=10.0).json()
    source = Path(next(iter(reply["students"]))["folder"])
    seen = Observation()
    with tempfile.TemporaryDirectory(prefix="fenhe-chaos-student-") as name:
        damage(source, Path(name))
        with server(Path(name)) as (process, _):
            seen.note(_outcome_of(process))
    return seen


def _outcome_of(process: ServedProcess) -> str:
    try:
        url = process.wait_for_url(DAMAGED_S)
    except RuntimeError:
        return "does not start"
    status = wait_ready(url, DAMAGED_S)
    reply = httpx.post(url + CHAT, json=chat("hello", max_tokens=4), timeout=30.0)
    return f"{status}, chat {reply.status_code}"


def damage(source: Path, folder: Path) -> None:
    """Copy a student to `folder`, with its largest stage damaged. What stays whole is linked."""
    weights = sorted(source.glob("*.weights"), key=lambda file: file.stat().st_size)
    stage = weights[-1].name.partition(".")[0]
    for file in source.iterdir():
        if file.name == "verified.json":
            continue
        if file.name.startswith(f"{stage}.") and file.suffix == ".weights":
            _flip(file, folder / file.name)
        else:
            (folder / file.name).symlink_to(file)


def _flip(source: Path, copy: Path) -> None:
    data = bytearray(source.read_bytes())
    begin = len(data) // 3
    end = min(begin + FLIPPED_BYTES, len(data))
    data[begin:end] = bytes(byte ^ 0xFF for byte in data[begin:end])
    copy.write_bytes(data)
    times = source.stat()
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))


def cache_folder() -> Path:
    if chosen := os.environ.get("FENHE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fenhe"


def read_only_cache(student: Path | None, target: Target) -> Observation:
    """The cache of this machine, on a file system that refuses every write."""
    folder, seen = cache_folder(), Observation()
    within = ["unshare", "-rm", "sh", "-c", SEALED, str(folder)]
    if not _works([*within, "true"]):
        return Observation(skipped="no file system can be mounted read-only here")
    with server(student, within=within) as (process, _):
        try:
            url = process.wait_for_url()
        except RuntimeError:
            seen.note("does not start")
            return seen
        status = wait_ready(url)
        reply = httpx.post(url + CHAT, json=chat("hello", max_tokens=4), timeout=30.0)
        seen.note(f"{status}, chat {reply.status_code}")
    return seen


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=10.0).returncode == 0
    except OSError:
        return False


def own_servers(student: Path | None) -> tuple[Attack, ...]:
    names = [f"{path} {host}" for path in HOST_PATHS for host in HOSTS]
    expected = {f"{name} {403 if name == '/v1/models evil.example' else 200}" for name in names}
    return (
        Attack(
            name=f"{NUM_CONNECTIONS} connections, {NUM_FILES} files",
            expected="503, never silence; a warning",
            run=partial(few_files, student),
            rules=(only("200", "503", "afterwards 200", "warned"), each("200", "503", "afterwards 200", "warned")),
        ),
        Attack(
            name="foreign Host without keys",
            expected="403, but for probes",
            run=partial(foreign_hosts, student),
            rules=(only(*expected), each(*expected)),
        ),
        Attack(
            name="SIGTERM, clients that do not read",
            expected=f"status 0 within {END_S:g} s, no traceback",
            run=partial(client_that_does_not_read, student),
            rules=(only("status 0"), at_most("s to the end", END_S + SLACK_S)),
        ),
        Attack(
            name="4 MB of the weights flipped",
            expected="never ready, never answers",
            run=damaged_student,
            rules=(only("unhealthy, chat 503", "does not start"),),
        ),
        Attack(
            name="read-only cache",
            expected="starts and answers",
            run=partial(read_only_cache, student),
            rules=(only("ready, chat 200"),),
        ),
    )
