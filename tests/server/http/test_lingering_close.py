"""A refusal reaches clients that are still sending, and does not wait for those that never stop."""

import json
import socket
import time

import pytest

from server.http.lingering_close import LINGER_S
from server.settings.config import Limits
from tests.server.conftest import Start
from tests.server.http.test_connection_limits import connect, read_all, refusal

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b"x" * 3_000_000


def send_for(connection: socket.socket, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        connection.sendall(b"x")
        time.sleep(0.05)


def test_refusal_of_a_large_body_is_not_reset_away(start: Start) -> None:
    served = start(limits=Limits(max_body_bytes=1000))
    for _ in range(5):
        with connect(served) as connection:
            connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
            raw = connection.recv(65536)
            while part := connection.recv(65536):  # a reset would raise
                raw += part
        assert refusal(raw) == (413, "request_too_large")


def test_refusal_of_a_long_head_is_not_reset_away(start: Start) -> None:
    served = start(limits=Limits(max_head_bytes=1000))
    with connect(served) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx-long: " + BODY)
        assert refusal(connection.recv(65536)) == (431, "headers_too_large")


def test_client_that_never_stops_sending_is_cut(start: Start) -> None:
    served = start(limits=Limits(max_body_bytes=1000))
    with connect(served) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % 10**9)
        assert refusal(read_all(connection)) == (413, "request_too_large")
        end_s = time.monotonic() + 20
        try:
            while time.monotonic() < end_s:
                connection.sendall(BODY)
        except (BrokenPipeError, ConnectionResetError):
            return
    raise AssertionError("the connection was still open")


def test_connection_that_was_read_to_its_end_closes_at_once(start: Start) -> None:
    served = start()
    body = json.dumps({"model": "nobody", "messages": [{"role": "user", "content": "x"}]}).encode()
    with connect(served) as connection:
        connection.sendall(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert b" 404 " in read_all(connection)
        with pytest.raises(ConnectionError):  # a server that lingers would take it
            send_for(connection, LINGER_S / 2)
