"""How much memory a hostile client can make the server use, as the system counts it for a real server process."""

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "served_process.py"
STATUS = Path("/proc/self/status")
ALLOWED_MB = 40

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")


class Process:
    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self._port = port
        self.greet()
        self._start_mb = self._megabytes()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=20)

    def greet(self) -> None:
        with self.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")

    def grown_mb(self) -> int:
        """From the start to the peak."""
        return self._megabytes() - self._start_mb

    def _megabytes(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self._pid}/status").read_text())
        assert found is not None
        return int(found[1]) // 1024


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with subprocess.Popen([sys.executable, str(PROGRAM), "1"], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield Process(running.pid, int(running.stdout.readline().rsplit(":", 1)[1]))
        finally:
            running.kill()


def send_until_stopped(connection: socket.socket, data: bytes, limit_bytes: int) -> None:
    """Send again and again, reading nothing, until the server reads no more or closes, or enough was sent."""
    connection.settimeout(1.0)
    with contextlib.suppress(OSError):
        for _ in range(0, limit_bytes, len(data)):
            connection.sendall(data)


def test_pipelined_requests_take_no_memory(process: Process) -> None:
    with process.connect() as connection:
        send_until_stopped(connection, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 2000, 13_000_000)
        process.greet()
    assert process.grown_mb() < ALLOWED_MB


@pytest.mark.parametrize("unended", [b"", b"x-long: "])
def test_trailers_take_no_memory(process: Process, unended: bytes) -> None:
    head = b"GET /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + unended
    trailers = b"a" * 65536 if unended else b"".join(b"x-%d: %s\r\n" % (index, b"a" * 48) for index in range(1000))
    with process.connect() as connection:
        connection.sendall(head)
        send_until_stopped(connection, trailers, 60_000_000)
        process.greet()
    assert process.grown_mb() < ALLOWED_MB
