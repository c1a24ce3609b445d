"""Connections that are too slow, too long or too many, on plain sockets."""

import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from engines.scripted import Line
from server.http.connection_limits import make_protocol
from server.settings.config import Limits
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


def test_offer_of_http_2_is_ignored_in_silence(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with connect(start()) as connection:
        for _ in range(2):
            connection.sendall(
                GET + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: A\r\n\r\n"
            )
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_connections_are_bounded(start: Start) -> None:
    served = start(limits=Limits(max_connections=2))
    with connect(served) as first, connect(served) as second:
        for connection in (first, second):
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with connect(served) as third:
            raw = read_all(third)
            assert b"retry-after: 1\r\n" in raw
            assert refusal(raw) == (503, "unavailable")
        metrics = first_of(first, GET.replace(b"health", b"metrics") + b"\r\n")
        assert 'fenhe_connection_refusals_total{code="unavailable"} 1.0' in metrics


def first_of(connection: socket.socket, request: bytes) -> str:
    """The text of one answer on a connection that stays open."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return body.decode()


@pytest.mark.parametrize("is_body", [True, False])
def test_connection_is_not_kept_open_by_what_is_no_request(start: Start, is_body: bool) -> None:
    """The rest of a body that was refused unread, and empty lines, a byte at a time: neither keeps it open."""
    served = start(limits=Limits(head_timeout_s=0.3))
    length = 10**9 if is_body else 0
    with connect(served) as connection, contextlib.suppress(ConnectionError):
        first_of(connection, b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length)
        connection.settimeout(0.02)
        for _ in range(500):
            connection.sendall(b"x" if is_body else b"\r\n")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(100) == b""
                break
        else:
            pytest.fail("the server kept the connection")
    assert until(lambda: served.context.refused_connections["request_timeout"] == 1)


def test_body_that_is_refused_unread_may_be_followed_by_a_request(start: Start) -> None:
    served = start()
    with connect(served) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nab")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        connection.sendall(b"cd" + GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@dataclass(slots=True, kw_only=True)
class Timer:
    cancel: Callable[[], None]


class HeldClock:
    """A loop of which a test sees the timers."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Any]] = []

    def call_later(self, seconds: float, callback: Any) -> Any:
        timer = (seconds, callback)
        self.timers.append(timer)
        return Timer(cancel=lambda: self.timers.remove(timer))


class FullTransport:
    """A connection to somebody who does not read: closing it never ends."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return bool(self.told)

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")


def test_closing_does_not_wait_for_ever_for_somebody_who_does_not_read() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError

    clock, transport = HeldClock(), FullTransport()
    refusals: Counter[str] = Counter()
    protocol = make_protocol(lambda: Limits(write_timeout_s=7.0), refusals)(
        config=uvicorn.Config(app, log_config=None), server_state=ServerState(), app_state={}, _loop=clock
    )
    protocol.connection_made(transport)  # type: ignore[arg-type]
    protocol.timeout_keep_alive_handler()
    protocol.pause_writing()
    protocol.resume_writing()  # a little was read, and there is more
    seconds, give_up = clock.timers[-1]
    give_up()
    assert (seconds, transport.told, refusals) == (7.0, ["close", "abort"], {"slow_reader": 1})
    protocol.connection_lost(None)
    assert len(clock.timers) == 1


def test_reader_that_stopped_is_cut_and_its_sequence_ended(start: Start) -> None:
    """It asks for more than all buffers hold, and reads nothing of it."""
    piece = "x" * 20_000
    served = start({"flood": Line(pieces=(piece,) * 400)}, limits=Limits(write_timeout_s=0.3))
    body = json.dumps({"model": "auto", "prompt": "flood", "stream": True, "max_tokens": 400}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with connect(served, SO_RCVBUF=4096) as connection:
        connection.sendall(head % len(body) + body)
        assert until(lambda: served.student.admission.turns.running.num_sequences == 1 or bool(served.engine.submitted))
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
