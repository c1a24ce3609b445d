"""What comes between and behind the chunks of a body: it is bounded, it is no header, and it is kept nowhere."""

import hashlib
import json
import logging
import socket
import time

import pytest

from server.settings.config import AdminConfig, KeysConfig, Limits, ServerConfig
from tests.server.conftest import SCRIPT, Start, TinyStudent, make_engine, open_scripted, run_server
from tests.server.http.test_connection_limits import connect, read_all, refusal
from tests.server.http.test_fuzz_http import replies_in

CHUNKED = b"host: x\r\ntransfer-encoding: chunked\r\n"
GET = b"GET /version HTTP/1.1\r\n" + CHUNKED
POST = b"POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n" + CHUNKED
BODY = json.dumps({"model": "auto", "prompt": "hello"}).encode()
WHOLE = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n"
LAST = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def lines(number: int, size: int = 1) -> bytes:
    return b"".join(b"x-%d: %s\r\n" % (index, b"a" * size) for index in range(number))


def send_and_read(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return read_all(connection)


@pytest.mark.parametrize("trailers", [lines(40), lines(15, 200), b"x-long: " + b"a" * 5000 + b"\r\n"])
@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_trailers_that_are_too_large_are_431(start: Start, trailers: bytes, end: bytes) -> None:
    served = start(limits=Limits(max_head_bytes=2000, max_headers=20))
    for segments in ([POST + b"\r\n" + WHOLE + trailers + end], [POST + b"\r\n", WHOLE, trailers + end]):
        with connect(served) as connection:
            for segment in segments[:-1]:
                connection.sendall(segment)
                time.sleep(0.02)
            assert refusal(send_and_read(connection, segments[-1])) == (431, "headers_too_large")
    assert served.context.refused_connections["headers_too_large"] == 2
    assert not served.engine.submitted


def test_trailer_in_many_pieces_is_bounded_all_the_same(start: Start) -> None:
    with connect(start(limits=Limits(max_head_bytes=2000))) as connection:
        connection.sendall(POST + b"\r\n" + WHOLE + b"x-long: ")
        for _ in range(3):
            connection.sendall(b"a" * 1000)
            time.sleep(0.02)
        assert refusal(read_all(connection)) == (431, "headers_too_large")


@pytest.mark.parametrize("size", [b"1;a=" + b"b" * 5000, b"0" * 5000, b"0;" + b"b" * 5000])
def test_chunk_extensions_are_bounded(start: Start, size: bytes) -> None:
    with connect(start(limits=Limits(max_head_bytes=2000))) as connection:
        assert refusal(send_and_read(connection, POST + b"\r\n" + size)) == (431, "headers_too_large")


def test_chunk_extensions_add_up(start: Start) -> None:
    with connect(start(limits=Limits(max_head_bytes=2000))) as connection:
        chunk = b"1;a=" + b"b" * 500 + b"\r\n \r\n"
        assert refusal(send_and_read(connection, POST + b"\r\n" + chunk * 8)) == (431, "headers_too_large")


def test_small_chunks_and_signed_ones_are_no_excess(start: Start) -> None:
    """Chunks of a byte, with leading zeros and a short extension; and of 1 kB with a signature each."""
    small = b"".join(b"0001;x=y\r\n%c\r\n" % byte for byte in b" " * 3000 + BODY) + b"0\r\n\r\n"
    signed = (b"400;chunk-signature=" + b"f" * 64 + b"\r\n" + b" " * 1024 + b"\r\n") * 100 + WHOLE + b"\r\n"
    served = start(limits=Limits(max_head_bytes=2000))
    with connect(served) as connection:
        raw = send_and_read(connection, POST + b"\r\n" + small + POST + b"\r\n" + signed + LAST)
    assert [reply.status for reply in replies_in(raw)] == [200, 200, 200]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize("path", [b"/v1/completions", b"/admin/cache", b"/debug/state"])
def test_trailers_bring_no_key(student: TinyStudent, path: bytes) -> None:
    config = ServerConfig(keys=KeysConfig(sha256=(digest("user"),)), admin=AdminConfig(key_sha256=digest("admin")))
    method = {b"/admin/cache": b"DELETE", b"/debug/state": b"GET"}.get(path, b"POST")
    head = b"%s %s HTTP/1.1\r\nconnection: close\r\ncontent-type: application/json\r\n" % (method, path) + CHUNKED
    key = b"authorization: Bearer " + (b"user" if path == b"/v1/completions" else b"admin") + b"\r\n"
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        for as_header, as_trailer, status in ((key, b"", 200), (b"", key, 401)):
            with connect(served) as connection:
                raw = send_and_read(connection, head + as_header + b"\r\n" + WHOLE + as_trailer + b"\r\n")
            assert [reply.status for reply in replies_in(raw)] == [status]


def test_trailers_are_no_headers_and_not_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    trailers = b"x-request-id: hidden\r\nx-fenhe-deadline-ms: hidden\r\nhidden: hidden\r\nexpect: 100-continue\r\n"
    with connect(start()) as connection:
        raw = send_and_read(connection, POST + b"\r\n" + WHOLE + trailers + b"\r\n" + LAST)
    assert [reply.status for reply in replies_in(raw)] == [200, 200]
    assert b"hidden" not in raw
    assert "hidden" not in caplog.text


def test_trailers_of_an_answered_request_are_dropped(start: Start) -> None:
    """And the next request is answered, with its own headers."""
    with connect(start()) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        raw = send_and_read(connection, b"0\r\nx-request-id: mine\r\nconnection: close\r\n\r\n" + LAST)
    (reply,) = replies_in(raw)
    assert reply.status == 200
    assert reply.headers["x-request-id"] != "mine"


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\0"])
def test_answered_request_gets_no_second_answer(start: Start, end: bytes) -> None:
    with connect(start(limits=Limits(max_head_bytes=2000))) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert send_and_read(connection, b"0\r\n" + lines(500) + end) == b""


@pytest.mark.parametrize("request_line", [GET, POST])
def test_trailers_that_drip_are_given_up(start: Start, request_line: bytes) -> None:
    served = start(limits=Limits(head_timeout_s=0.3, body_timeout_s=0.3))
    with connect(served) as connection:
        connection.sendall(request_line + b"\r\n" + (WHOLE if request_line is POST else b"0\r\n"))
        raw, end_s = b"", time.monotonic() + 5
        connection.settimeout(0.02)
        while time.monotonic() < end_s:
            try:
                connection.sendall(b"x: 1\r\n")
                part = connection.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not part:
                break
            raw += part
        else:
            pytest.fail("the server kept the connection")
    assert [reply.status for reply in replies_in(raw)] == [200 if request_line is GET else 408]
