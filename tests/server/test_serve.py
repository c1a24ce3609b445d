"""A real server process: it listens, drains on the first signal, ends at once on the second."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
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
def run(grace_s: float, file: Path | None = None, open_files: tuple[int, int] | None = None) -> Iterator[Running]:
    command = [sys.executable, str(PROGRAM), str(grace_s), *([] if file is None else [str(file)])]
    if open_files is not None:  # the soft and the hard limit
        limits = "ulimit -Sn {} && ulimit -Hn {}".format(*open_files)
        command = ["sh", "-c", f'{limits} && exec "$@"', "sh", *command]
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


def children_of(process: "subprocess.Popen[str]") -> list[int]:
    files = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def exists(pid: int) -> bool:
    file = Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_schema_that_is_compiled_ends_with_the_server(signum: signal.Signals) -> None:
    costly = {"allOf": [{"type": "string", "pattern": f".*a.{{{30 + i}}}b.*"} for i in range(13)]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": costly}}
    with run(grace_s=0.1) as running, ThreadPoolExecutor() as threads:
        asked = threads.submit(running.http.post, "/v1/chat/completions", json=BODY | {"response_format": form})
        assert until(lambda: bool(children_of(running.process)))
        (child,) = children_of(running.process)
        running.process.send_signal(signum)
        assert running.process.wait(10) == (0 if signum is signal.SIGTERM else -signum)
        assert until(lambda: not exists(child))
        if signum is signal.SIGTERM:
            assert asked.result().json()["error"]["code"] == "stopping"
        else:
            with pytest.raises(httpx.TransportError):
                asked.result()


def test_clients_that_do_not_read_or_send_cannot_hold_the_server_up() -> None:
    """One never reads its stream, one never sends the body that it has announced, one stays silent."""
    with run(grace_s=0.2) as running:
        host, port = running.http.base_url.host, running.http.base_url.port
        stuck = [socket.create_connection((host, port)) for _ in range(3)]
        stuck[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        body = msgspec.json.encode(BODY | {"max_tokens": 4000})
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        stuck[0].sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        stuck[1].sendall(head + b"content-length: 100\r\n\r\n{")
        assert until(lambda: running.status("/health") == 200)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
        _, log = running.process.communicate()
        assert "cutting off connections=" in log
        assert "Traceback" not in log
        for client in stuck:
            client.close()


def test_second_signal_ends_at_once() -> None:
    with run(grace_s=60) as running, streaming(running):
        running.process.send_signal(signal.SIGTERM)
        assert until(lambda: running.status("/readyz") == 503)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == -signal.SIGTERM


def statuses(running: Running, num_connections: int) -> list[int]:
    """What `/health` says on connections that are all open at once; 0 where nothing comes."""
    address = (running.http.base_url.host, running.http.base_url.port or 0)
    found = []
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(address, timeout=3)) for _ in range(num_connections)]
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        for connection in opened:
            head = b""
            with contextlib.suppress(OSError):
                head = connection.recv(65536)
            found.append(int(head.split()[1]) if head else 0)
    return found


COLLECTOR = """
import gc, weakref
from server.lifecycle.memory import give_memory_back
from server.serve import tame_collector
class Student: pass
student = Student()
student.itself, seen = student, weakref.ref(student)
tame_collector()
print(gc.get_threshold()[0], gc.get_freeze_count() > 1000)
del student
gc.collect()
print(seen() is None)
give_memory_back()
print(seen() is None)
"""


def test_garbage_collector_leaves_alone_what_there_is_until_a_student_goes() -> None:
    """In a process of its own: it is for the whole process."""
    done = subprocess.run([sys.executable, "-c", COLLECTOR], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10000", "True", "False", "True"]


SWITCHING = """
import os
import sys
from server import serve
class Server:
    started = True
    def __init__(self, context, announce): pass
    def run(self, sockets):
        print(sys.getswitchinterval() == serve.SWITCH_S < 0.001, os.environ["TOKENIZERS_PARALLELISM"])
serve.Server = Server
serve.raise_limit = lambda bound: None
class Context:
    class config:
        class limits: max_connections = 1
serve.serve(Context, None, None)
"""


def test_threads_give_the_interpreter_up_soon_and_tokenise_themselves_while_it_serves() -> None:
    """In a process of its own: it is for the whole process."""
    environ = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", SWITCHING], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["True", "false"]


def test_few_open_files_are_a_503_and_a_warning() -> None:
    with run(grace_s=1, open_files=(104, 104)) as running:
        found = statuses(running, 110)
        assert set(found) == {200, 503}
        assert found.count(200) == 40
        running.process.send_signal(signal.SIGTERM)
        _, log = running.process.communicate(timeout=10)
    assert "at most 40 connections instead of limits.max_connections=4096; allow 4160 files" in log


def test_open_files_are_raised_to_what_the_system_allows() -> None:
    with run(grace_s=1, open_files=(104, 4160)) as running:
        assert set(statuses(running, 110)) == {200}
        running.process.send_signal(signal.SIGTERM)
        _, log = running.process.communicate(timeout=10)
    assert "open files" not in log
