"""The servers of a comparison: what starts each, on which cores, and how it ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

from loadtest.served import free_port, installed_command
from loadtest.traffic.workload import Table

SHIPPED = Path(__file__).with_name("servers.toml")
START_S = 600.0
STOP_S = 30.0
POLL_S = 0.05


class AbsentServer(Exception):
    """It cannot run here; the text says what is missing and how to get it."""


class ServerSpec(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of `servers.toml`."""

    about: str
    role: Literal["ours", "peer", "engine"]
    batches: bool
    command: list[str]
    model: str = "auto"
    needs: tuple[str, ...] = ()
    install: str = ""
    prepare: tuple[str, ...] = ()
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    environment: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass(slots=True, kw_only=True, frozen=True)
class Place:
    """Where servers run, and what their commands are filled in with. `peers_python` has the peers' packages, where
    `pythons` has no other one for a server.
    """

    server_cores: tuple[int, ...]
    generator_cores: tuple[int, ...]
    folder: Path
    student: Path
    gguf: Path | None
    peers_python: str = sys.executable
    pythons: Mapping[str, str] = field(default_factory=dict)
    _prepared: set[str] = field(default_factory=set)

    def python_of(self, name: str) -> str:
        return self.pythons.get(name, self.peers_python)

    def fill(self, name: str, parts: Sequence[str], port: int) -> list[str]:
        values = {
            "fenhe": installed_command(),
            "fenhe_python": sys.executable,
            "python": self.python_of(name),
            "port": port,
            "threads": len(self.server_cores),
            "cores": ",".join(map(str, self.server_cores)),
            "student": self.student,
            "vllm_student": self.student.parent / f"{self.student.name}-vllm",
            "gguf": self.gguf or "",
            "folder": self.folder,
        }
        return [part.format_map(values) for part in parts]


@dataclass(slots=True, kw_only=True)
class RunningServer:
    name: str
    spec: ServerSpec
    url: str
    model: str
    process: subprocess.Popen[bytes]
    ready_s: float

    def resident_mib(self) -> float:
        """Of the process and its children."""
        pids = [self.process.pid, *_children(self.process.pid)]
        return sum(_resident_kib(pid) for pid in pids) / 1024


def read_servers(more: Path | None = None) -> dict[str, ServerSpec]:
    """Raises: ValueError that names the file."""
    found: dict[str, ServerSpec] = {}
    for file in (SHIPPED, *([] if more is None else [more])):
        try:
            found |= msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), dict[str, ServerSpec])
        except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise ValueError(f"{file}: {error}") from error
    return found


def pinned(cores: Sequence[int], command: Sequence[str]) -> list[str]:
    """Raises: FileNotFoundError where there is no taskset."""
    taskset = shutil.which("taskset")
    if taskset is None:
        raise FileNotFoundError("`taskset` is not installed: it is in the package util-linux")
    return [taskset, "--cpu-list", ",".join(map(str, cores)), *command]


@contextlib.contextmanager
def started(name: str, spec: ServerSpec, place: Place) -> Iterator[RunningServer]:
    """Ready to answer, which `ready_s` seconds after its start it was.

    Raises: AbsentServer.
    """
    check_needs(name, spec, place)
    prepare(name, spec, place)
    port = free_port()
    command = pinned(place.server_cores, place.fill(name, spec.command, port))
    own = zip(spec.environment, place.fill(name, list(spec.environment.values()), port), strict=True)
    environ = os.environ | {"OMP_NUM_THREADS": str(len(place.server_cores))} | dict(own)
    log = place.folder / f"{name}.log"
    begun_s = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        server = RunningServer(
            name=name,
            spec=spec,
            url=f"http://127.0.0.1:{port}",
            model=place.fill(name, [spec.model], port)[0],
            process=process,
            ready_s=0.0,
        )
        try:
            _wait_until_ready(server, log)
            server.ready_s = time.perf_counter() - begun_s
            yield server
        finally:
            _stop(process)


def check_needs(name: str, spec: ServerSpec, place: Place) -> None:
    """Raises: AbsentServer."""
    if any("{gguf}" in part for part in (*spec.command, *spec.prepare)) and place.gguf is None:
        raise AbsentServer(f"{name} needs the GGUF file: give --gguf FILE")
    if not spec.needs:
        return
    code = "import importlib.util, sys\nfor name in sys.argv[1:]:\n assert importlib.util.find_spec(name), name"
    done = subprocess.run([place.python_of(name), "-c", code, *spec.needs], capture_output=True, check=False)
    if done.returncode != 0:
        raise AbsentServer(f"{place.python_of(name)} cannot import {', '.join(spec.needs)}: {spec.install}")


def prepare(name: str, spec: ServerSpec, place: Place) -> None:
    """What a server needs made beforehand, once for a run.

    Raises: AbsentServer.
    """
    if not spec.prepare or name in place._prepared:
        return
    done = subprocess.run(place.fill(name, spec.prepare, 0), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AbsentServer(f"{name} could not be prepared: {spec.install} {done.stderr[-300:]}")
    place._prepared.add(name)


def _wait_until_ready(server: RunningServer, log: Path) -> None:
    """Until it answers a chat of one token. Raises: AbsentServer with the end of its log."""
    body: Mapping[str, Any] = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        **server.spec.body,
    }
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and server.process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=START_S).status_code == 200:
                return
        time.sleep(POLL_S)
    said, status = log.read_text(errors="replace")[-400:], server.process.poll()
    how = f"was not ready after {START_S:g} s" if status is None else f"ended with status {status}"
    raise AbsentServer(f"{server.name} {how}: {' '.join(said.split())}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started, which is in its process group."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [found for child in map(int, text.split()) for found in (child, *_children(child))]


def _resident_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
