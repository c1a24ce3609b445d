"""Requests behind one another on a connection: answered in order, one parsed at a time, the rest held as bytes."""

import gc
import json
import socket
import time

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.http.connection_limits import MANY_IN_A_ROW, PAUSE_S
from tests.server.conftest import Start, until
from tests.server.http.test_connection_limits import connect, read_all
from tests.server.http.test_connection_memory import protocols
from tests.server.http.test_fuzz_http import replies_in

GET = b"GET /version HTTP/1.1\r\nhost: x\r\nx-request-id: quick%d\r\n\r\n"
LAST = b"GET /version HTTP/1.1\r\nhost: x\r\nx-request-id: last\r\nconnection: close\r\n\r\n"


def completion(prompt: str, name: str, **fields: object) -> bytes:
    body = json.dumps({"model": "auto", "prompt": prompt, **fields}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: %s\r\n"
    return head % name.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


def chunked(prompt: str, name: str) -> bytes:
    head, _, body = completion(prompt, name).partition(b"\r\n\r\n")
    head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"content-length"))
    return head + b"\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


def num_cycles() -> int:
    """Requests that uvicorn knows of."""
    return sum(issubclass(type(one), RequestResponseCycle) for one in gc.get_objects())


def test_slow_request_and_quick_ones_behind_it_are_answered_in_order(start: Start) -> None:
    served = start()
    names = [f"quick{number}" for number in range(60)]
    requests = completion("slow", "slow", max_tokens=20) + b"".join(GET % number for number in range(60))
    with connect(served) as connection:
        connection.sendall(requests + chunked("hello", "chunks") + LAST)
        replies = replies_in(read_all(connection))
    assert [reply.headers["x-request-id"] for reply in replies] == ["slow", *names, "chunks", "last"]
    assert {reply.status for reply in replies} == {200}


def test_empty_lines_between_requests_are_nothing(start: Start) -> None:
    with connect(start()) as connection:
        connection.sendall(b"\r\n\r\n" + GET % 0 + b"\r\n" + completion("hello", "a") + b"\r\n\r\n" + LAST)
        replies = replies_in(read_all(connection))
    assert [reply.headers["x-request-id"] for reply in replies] == ["quick0", "a", "last"]


def test_requests_behind_a_slow_one_are_held_unparsed(start: Start) -> None:
    served = start()
    gc.collect()
    num_before = num_cycles()
    with connect(served) as connection:
        connection.sendall(completion("slow", "slow", stream=True) + b"".join(GET % number for number in range(3000)))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(GET % 3000)
        assert b"data: " in connection.recv(65536)
        assert num_cycles() <= num_before + 1


def test_client_that_leaves_with_requests_held_ends_the_one_being_answered(start: Start) -> None:
    served = start()
    with connect(served) as connection:
        connection.sendall(completion("slow", "slow", max_tokens=200) + GET % 0 + completion("slow", "second"))
        assert until(lambda: served.engine.status().num_running == 1)
    assert until(lambda: served.engine.status().num_running == 0, 2.0)
    assert until(lambda: not served.context.drain.open_keys, 2.0)
    assert len(served.engine.submitted) == 1


def test_after_many_in_a_row_each_waits_for_others(start: Start) -> None:
    num_rest = 40
    requests = b"".join(GET % number for number in range(MANY_IN_A_ROW + num_rest))
    with connect(start()) as connection:
        connection.sendall(requests + completion("hello", "a") + LAST)
        started_s = time.perf_counter()
        connection.shutdown(socket.SHUT_WR)
        replies = replies_in(read_all(connection))
    assert len(replies) == MANY_IN_A_ROW + num_rest + 2
    assert {reply.status for reply in replies} == {200}
    assert time.perf_counter() - started_s > num_rest * PAUSE_S


def test_client_that_leaves_in_a_pause_leaves_nothing(start: Start) -> None:
    with connect(start()) as connection:
        connection.sendall(b"".join(GET % number for number in range(MANY_IN_A_ROW + 3000)))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert until(lambda: not any(one in one.connections for one in protocols()), 5.0)
