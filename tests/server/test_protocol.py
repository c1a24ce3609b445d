"""Connections that are too slow, too long or too many, on plain sockets."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from engines.scripted import Line
from server.config import Limits
from tests.server.conftest import Served, Start, until

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"


@contextlib.contextmanager
def connect(served: Served, **options: int) -> Iterator[socket.socket]:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        for name, value in options.items():
            connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        connection.settimeout(20)
        connection.connect((host, int(port)))
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def refusal(raw: bytes) -> tuple[int, str]:
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error["code"]


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x-long: " + b"a" * 5000,
        GET + b"x-long: " + b"a" * 5000 + b"\r\n\r\n",
        GET + b"".join(b"x-%d: %s\r\n" % (index, b"b" * 200) for index in range(15)) + b"\r\n",
        GET + b"".join(b"x-%d: b\r\n" % index for index in range(40)) + b"\r\n",
    ],
)
def test_head_that_is_too_large_is_431(start: Start, head: bytes) -> None:
    served = start(limits=Limits(max_head_bytes=2000, max_headers=20))
    with connect(served) as connection:
        connection.sendall(head)
        assert refusal(read_all(connection)) == (431, "headers_too_large")


def test_head_in_many_pieces_is_bounded_all_the_same(start: Start) -> None:
    served = start(limits=Limits(max_head_bytes=2000))
    with connect(served) as connection:
        connection.sendall(GET + b"x-long: ")
        for _ in range(3):
            connection.sendall(b"a" * 1000)
        assert refusal(connection.recv(65536)) == (431, "headers_too_large")


def test_url_that_is_too_long_is_414(start: Start) -> None:
    served = start(limits=Limits(max_url_bytes=100))
    with connect(served) as connection:
        connection.sendall(b"GET /version?model=%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 100))
        assert refusal(read_all(connection)) == (414, "uri_too_long")


@pytest.mark.parametrize("sent", [b"", b"GET /hea", GET])
def test_head_that_does_not_come_is_given_up(start: Start, sent: bytes) -> None:
    served = start(limits=Limits(head_timeout_s=0.2))
    with connect(served) as connection:
        connection.sendall(sent)
        assert refusal(read_all(connection)) == (408, "request_timeout")


def test_second_head_on_a_connection_has_its_own_time(start: Start) -> None:
    served = start(limits=Limits(head_timeout_s=0.3))
    with connect(served) as connection:
        for _ in range(2):
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /hea")
        assert refusal(read_all(connection)) == (408, "request_timeout")


def test_slow_answers_are_not_slow_heads(start: Start) -> None:
    served = start({"wait": Line(pieces=("a", "b"), delay_s=0.4)}, limits=Limits(head_timeout_s=0.2))
    assert served.chat("wait").status_code == 200


def test_what_is_no_http_gets_the_api_s_error(start: Start) -> None:
    with connect(start()) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert refusal(read_all(connection)) == (400, "invalid_request")


def test_connections_are_bounded(start: Start) -> None:
    served = start(limits=Limits(max_connections=2))
    with connect(served) as first, connect(served) as second:
        for connection in (first, second):
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with connect(served) as third:
            assert refusal(read_all(third)) == (503, "unavailable")


def test_reader_that_stopped_is_cut_and_its_sequence_ended(start: Start) -> None:
    """It asks for more than all buffers hold, and reads nothing of it."""
    piece = "x" * 20_000
    served = start({"flood": Line(pieces=(piece,) * 400)}, limits=Limits(write_timeout_s=0.3))
    body = json.dumps({"model": "auto", "prompt": "flood", "stream": True, "max_tokens": 400}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with connect(served, SO_RCVBUF=4096) as connection:
        connection.sendall(head % len(body) + body)
        assert until(lambda: served.student.gate.admission.running.num_sequences == 1 or bool(served.engine.submitted))
        assert until(lambda: served.student.bridge.num_streams == 0 and not served.context.drain.open_keys)
        assert until(lambda: served.engine.status().num_running == 0)
        assert len(read_all(connection)) < 400 * len(piece)
    assert served.chat("hello").status_code == 200


def test_reader_that_is_slow_but_reads_gets_everything(start: Start) -> None:
    served = start({"flood": Line(pieces=("x" * 20_000,) * 50)}, limits=Limits(write_timeout_s=5.0))
    with served.http.stream(
        "POST", "/v1/completions", json={"model": "auto", "prompt": "flood", "stream": True, "max_tokens": 50}
    ) as response:
        assert sum(map(len, response.iter_raw(1000))) > 1_000_000
