"""Replicas in slots, as a Deployment keeps them: four addresses that proxies know, of which three are in use."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.programs import ROOT

NUM_SLOTS = 4
SCRIPTED = (sys.executable, "-m", "tests.deploy.fleet.scripted_replica")
REAL = (str(Path(sys.executable).parent / "fenhe"), "serve")
HEALTH_CHECK_S = 1.5
"""After this every proxy of deploy/proxies knows that a replica is ready, or is no more."""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def status_of(url: str, limit_s: float = 5.0) -> int | None:
    """None where nothing answers in time."""
    try:
        with urllib.request.urlopen(url, timeout=limit_s) as reply:
            status: int = reply.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@dataclass(slots=True, kw_only=True)
class Replica:
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, limit_s: float) -> int:
        """Its exit status. Raises: TimeoutExpired."""
        self.send(signal.SIGTERM)
        return self.process.wait(limit_s)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True, kw_only=True)
class Fleet:
    """`replicas` are those in use, the oldest first."""

    command: Sequence[str]
    environ: Mapping[str, str]
    folder: Path
    ports: Sequence[int] = field(default_factory=lambda: free_ports(NUM_SLOTS))
    replicas: list[Replica] = field(default_factory=list)
    num_started: int = 0

    def begin(self) -> Replica:
        """Start a replica in a free slot."""
        taken = {replica.port for replica in self.replicas}
        port = next(port for port in self.ports if port not in taken)
        self.num_started += 1
        log = self.folder / f"replica-{self.num_started}.log"
        variables = {"FENHE_HOST": "127.0.0.1", "FENHE_PORT": str(port), "FENHE_GRACE_S": "20", **self.environ}
        with log.open("w") as out:
            process = subprocess.Popen(
                [*self.command], cwd=ROOT, env={**os.environ, **variables}, stdout=out, stderr=subprocess.STDOUT
            )
        replica = Replica(port=port, process=process, log=log)
        self.replicas.append(replica)
        return replica

    def wait_ready(self, replica: Replica, limit_s: float = 120.0) -> None:
        end_s = time.monotonic() + limit_s
        while status_of(f"{replica.url}/readyz") != 200:
            assert replica.process.poll() is None, replica.log.read_text()[-3000:]
            assert time.monotonic() < end_s, replica.log.read_text()[-3000:]
            time.sleep(0.05)

    def add(self, count: int = 1) -> None:
        for replica in [self.begin() for _ in range(count)]:
            self.wait_ready(replica)

    def remove(self, replica: Replica) -> int:
        """End one as Kubernetes does, but without taking it from the proxies first: the harder case."""
        status = replica.stop(30.0)
        self.replicas.remove(replica)
        return status

    def replace_all(self) -> list[int]:
        """A rolling restart: a new replica is ready before an old one is told to stop. Exit statuses of the old."""
        statuses = []
        for old in list(self.replicas):
            self.add()
            time.sleep(HEALTH_CHECK_S)
            statuses.append(self.remove(old))
            time.sleep(HEALTH_CHECK_S)
        return statuses

    def end(self) -> None:
        for replica in self.replicas:
            replica.end()


@contextlib.contextmanager
def fleet_of(
    count: int, folder: Path, command: Sequence[str] = SCRIPTED, environ: Mapping[str, str] | None = None
) -> Iterator[Fleet]:
    fleet = Fleet(command=command, environ=environ or {}, folder=folder)
    try:
        fleet.add(count)
        yield fleet
    finally:
        fleet.end()
