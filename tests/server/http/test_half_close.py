"""A client that sends no more may still read its answer; one that has left is noticed all the same."""

import json
import re
import socket
import struct
from typing import Any

import pytest

from engines.scripted import Line
from server.http import half_close
from server.http.half_close import TELL, HalfClose
from tests.server.conftest import RAW_HOST, Served, Start, until

ENDLESS = {"endless": Line(pieces=("a",) * 400, delay_s=0.1)}
"""Longer than any test waits."""


def get(path: str, version: str = "1.1") -> bytes:
    return f"GET {path} HTTP/{version}\r\nhost: {RAW_HOST}\r\n\r\n".encode()


def post(path: str, version: str = "1.1", **body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: {RAW_HOST}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data


def chat(prompt: str, version: str = "1.1", **fields: Any) -> bytes:
    return post("/v1/chat/completions", version, model="auto", messages=[{"role": "user", "content": prompt}], **fields)


def connect(served: Served) -> socket.socket:
    port = int(served.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send_and_end(served: Served, data: bytes) -> socket.socket:
    connection = connect(served)
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    return connection


def read_all(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def statuses(raw: bytes) -> list[int]:
    """Of the answers that are final."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", raw) if status != b"100"]


def is_idle(served: Served) -> bool:
    return served.context.num_streams == 0 and not served.context.drain.open_keys


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (get("/health"), b"}"),
        (get("/v1/models"), b"}"),
        (get("/health", "1.0"), b"}"),
        (post("/tokenize", prompt="hi"), b"}"),
        (post("/tokenize", prompt="x" * 200_000), b"}"),
        (chat("hello"), b"}"),
        (chat("hello", "1.0"), b"}"),
        (chat("hello", stream=True), b"data: [DONE]\n\n\r\n0\r\n\r\n"),
    ],
)
def test_request_of_a_client_that_ends_its_side_is_answered(served: Served, data: bytes, end: bytes) -> None:
    raw = read_all(send_and_end(served, data))
    assert statuses(raw) == [200]
    assert raw.endswith(end)


def test_answer_that_takes_time_comes_too(start: Start) -> None:
    served = start({"unhurried": Line(pieces=("a",) * 10, delay_s=0.05)})
    raw = read_all(send_and_end(served, chat("unhurried")))
    assert raw.startswith(TELL)
    assert statuses(raw) == [200]
    assert json.loads(raw[raw.index(b"{") :])["choices"][0]["message"]["content"] == "a" * 10


def test_requests_behind_each_other_are_all_answered(served: Served) -> None:
    raw = read_all(send_and_end(served, get("/health") + chat("hello") + get("/nowhere")))
    assert statuses(raw) == [200, 200, 404]


@pytest.mark.parametrize("data", [b"", b"GET /hea", chat("hello")[:-5], get("/health") + b"GET /hea"])
def test_half_a_request_ends_the_connection(served: Served, data: bytes) -> None:
    raw = read_all(send_and_end(served, data))
    assert statuses(raw) == ([200] if b"health" in data else [])
    assert until(lambda: is_idle(served))


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("has_ended_before", [False, True])
def test_client_that_leaves_is_noticed(start: Start, is_stream: bool, has_ended_before: bool) -> None:
    served, data = start(ENDLESS), chat("endless", stream=is_stream)
    connection = send_and_end(served, data) if has_ended_before else connect(served)
    if not has_ended_before:
        connection.sendall(data)
    assert until(lambda: served.context.num_streams == 1)
    connection.close()
    assert until(lambda: is_idle(served) and served.engine.status().num_running == 0)


def test_client_that_leaves_with_a_reset_is_noticed(start: Start) -> None:
    served = start(ENDLESS)
    connection = send_and_end(served, chat("endless"))
    assert until(lambda: served.context.num_streams == 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert until(lambda: is_idle(served))


def test_old_clients_cannot_be_told_anything_and_are_given_a_while(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_close, "PATIENCE_S", 0.1)
    served = start(ENDLESS)
    connection = send_and_end(served, chat("endless", "1.0"))
    assert until(lambda: served.context.num_streams == 1)
    assert until(lambda: is_idle(served))
    assert read_all(connection) == b""


class Clock:
    """A loop whose timers are kept, and a connection on it."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Any]] = []
        self.written: list[bytes] = []
        self.is_silent = self.knows_interim = True
        self.loop: Any = self
        self.transport: Any = self

    def call_later(self, seconds: float, callback: Any, *arguments: Any) -> Any:
        self.timers.append((seconds, lambda: callback(*arguments)))
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def tick(self) -> float:
        seconds, callback = self.timers.pop()
        callback()
        return seconds


def test_writing_gets_rarer_and_stops_with_the_answer() -> None:
    clock = Clock()
    half = HalfClose(clock)
    half.begin()
    half.begin()
    assert clock.written == [TELL]
    assert [clock.tick() for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert len(clock.written) == 8
    clock.is_silent = False
    clock.tick()
    assert len(clock.written) == 8
    half.forget()
    assert not clock.timers
