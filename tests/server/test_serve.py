"""A real server process: it listens, drains on the first signal, ends at once on the second."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import events_of, until

PROGRAM = Path(__file__).parent / "served_process.py"
BODY = {"model": "auto", "messages": [{"role": "user", "content": "slow"}], "stream": True}


@dataclass(slots=True, kw_only=True)
class Running:
    process: subprocess.Popen[str]
    http: httpx.Client

    def status(self, path: str) -> int:
        return self.http.get(path).status_code


@contextlib.contextmanager
def run(grace_s: float, file: Path | None = None) -> Iterator[Running]:
    command = [sys.executable, str(PROGRAM), str(grace_s), *([] if file is None else [str(file)])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, timeout=20) as http:
            yield Running(process=process, http=http)
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def streaming(running: Running, **fields: Any) -> Iterator[Iterator[bytes]]:
    """A stream that has begun."""
    with running.http.stream("POST", "/v1/chat/completions", json=BODY | fields) as response:
        assert response.status_code == 200
        parts = response.iter_raw()
        next(parts)
        yield parts


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_finishes_what_runs_and_exits_zero(signum: signal.Signals) -> None:
    with run(grace_s=20) as running:
        with streaming(running, max_tokens=40) as parts:
            running.process.send_signal(signum)
            assert until(lambda: running.status("/readyz") == 503)
            assert running.status("/health") == 200
            refused = running.http.post("/v1/completions", json={"model": "auto", "prompt": "x"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            raw = b"".join(parts)
        assert events_of(raw)[-1] == "[DONE]"
        assert running.process.wait(10) == 0


def test_idle_server_ends_on_a_signal() -> None:
    with run(grace_s=20) as running:
        assert running.status("/readyz") == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0


def test_grace_over_ends_streams_with_an_error_and_exits_zero() -> None:
    with run(grace_s=0.2) as running:
        with streaming(running) as parts:
            running.process.send_signal(signal.SIGTERM)
            last = events_of(b"".join(parts))[-1]
        assert last["error"]["code"] == "stopping"
        assert running.process.wait(10) == 0


def test_second_signal_ends_at_once() -> None:
    with run(grace_s=60) as running, streaming(running):
        running.process.send_signal(signal.SIGTERM)
        assert until(lambda: running.status("/readyz") == 503)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == -signal.SIGTERM
