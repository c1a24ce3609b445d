"""Requests byte by byte: cut anywhere, in odd chunks, wrongly framed, left half-way. The server answers or closes, and
goes on."""

import http.client
import io
import itertools
import json
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.settings.config import Limits, ServerConfig
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server, until
from tests.server.fuzzing import Reply, search

BODY = json.dumps({"model": "auto", "prompt": "hello", "max_tokens": 4}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: fuzz\r\n"
WHOLE = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
SAID = "Hello, world!"


@pytest.fixture(scope="module")
def served(student: TinyStudent) -> Iterator[Served]:
    limits = Limits(head_timeout_s=5, body_timeout_s=5, max_body_bytes=10_000)
    with run_server([open_scripted(student, make_engine(SCRIPT))], ServerConfig(limits=limits)) as running:
        yield running


def speak(served: Served, segments: Iterable[bytes], *, hangs_up: bool = False) -> bytes:
    """Send segments one by one and read until the server closes; it may do so before it has read all."""
    host, port = served.url.removeprefix("http://").split(":")
    told = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for segment in segments:
                connection.sendall(segment)
            if hangs_up:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                told += part
        except (ConnectionResetError, BrokenPipeError):
            assert hangs_up or told or segments
    return told


class Canned:
    """Bytes that `http.client` takes for a socket."""

    def __init__(self, raw: bytes) -> None:
        self._file = io.BytesIO(raw)

    def makefile(self, mode: str) -> io.BytesIO:
        return self._file


def replies_in(raw: bytes) -> list[Reply]:
    """Every whole response, in order; fails on a part of one."""
    source: Any = Canned(raw)
    file = source.makefile("rb")
    replies = []
    while file.tell() < len(raw):
        response = http.client.HTTPResponse(source)
        response.fp = file
        response.begin()
        length = response.getheader("content-length")
        content = response.read() if length is None else file.read(int(length))
        response.fp = None  # type: ignore[assignment]
        headers = {name.lower(): value for name, value in response.getheaders()}
        replies.append(Reply(response.status, headers, content))
    return replies


def check_answer(raw: bytes) -> None:
    (reply,) = replies_in(raw)
    assert reply.status == 200, reply
    assert reply.json()["choices"][0]["text"] == SAID


def check_refusals(raw: bytes) -> list[int]:
    """The statuses; what was refused was refused in the API's shape."""
    replies = replies_in(raw)
    for reply in replies:
        assert reply.status < 500, raw
        if reply.status >= 400:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    return [reply.status for reply in replies]


def check_idle(served: Served) -> None:
    """Nothing is left of the requests before, and the next one is answered."""
    assert until(lambda: not served.context.drain.open_keys)
    assert until(lambda: served.student.bridge.num_streams == 0)
    assert served.http.get("/health").status_code == 200


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(1, len(WHOLE) - 1), max_size=12)


@search(60)
@given(CUTS)
@example(places=list(range(1, len(WHOLE))))
def test_request_in_any_segments_is_answered(served: Served, places: list[int]) -> None:
    check_answer(speak(served, cut(WHOLE, places)))


@st.composite
def chunked_body(draw: st.DrawFn) -> bytes:
    """The body in chunks, with sizes written in all the ways they may be, extensions and trailers."""
    pieces = cut(BODY, draw(st.lists(st.integers(1, len(BODY) - 1), max_size=8)))
    raw = b""
    for piece in pieces:
        size = f"{len(piece):x}".rjust(draw(st.integers(1, 6)), "0")
        size = size.upper() if draw(st.booleans()) else size
        raw += size.encode() + draw(st.sampled_from([b"", b";a", b";a=b", b';a="b;c"'])) + b"\r\n" + piece + b"\r\n"
    return raw + b"0\r\n" + draw(st.sampled_from([b"", b"x-trailer: 1\r\n"])) + b"\r\n"


@search(60)
@given(chunked_body(), CUTS)
def test_body_in_odd_chunks_is_answered(served: Served, body: bytes, places: list[int]) -> None:
    raw = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + body
    check_answer(speak(served, cut(raw, places)))


@search(60)
@given(st.integers(0, len(WHOLE)), st.booleans())
@example(place=len(WHOLE) - 1, hangs_up=True)
def test_request_cut_anywhere_leaves_nothing_behind(served: Served, place: int, hangs_up: bool) -> None:
    if hangs_up:
        check_refusals(speak(served, [WHOLE[:place]], hangs_up=True))
    else:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(WHOLE[:place])
    check_idle(served)


def test_body_that_stops_is_given_up(student: TinyStudent) -> None:
    limits = Limits(head_timeout_s=0.2, body_timeout_s=0.2)
    with run_server([open_scripted(student, make_engine(SCRIPT))], ServerConfig(limits=limits)) as served:
        for place in (10, len(HEAD), len(WHOLE) - 5):
            assert check_refusals(speak(served, [WHOLE[:place]])) == [408]
        check_idle(served)


WRONG_FRAMES = {
    "length and chunks": b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 3\r\ncontent-length: 4\r\n\r\n{}  ",
    "negative length": b"content-length: -1\r\n\r\n",
    "length with a sign": b"content-length: +2\r\n\r\n{}",
    "length that is none": b"content-length: x\r\n\r\n",
    "length beyond all bounds": b"content-length: %s\r\n\r\n" % (b"9" * 30),
    "length of many zeros": b"content-length: %s2\r\n\r\n{}" % (b"0" * 5000),
    "length too large": b"content-length: 10001\r\n\r\n",
    "chunks too large": b"transfer-encoding: chunked\r\n\r\n2712\r\n" + b" " * 10_002 + b"\r\n0\r\n\r\n",
    "chunk size that is none": b"transfer-encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
    "chunk size with a sign": b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk size beyond all bounds": b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "chunk longer than told": b"transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "coding that is not chunked": b"transfer-encoding: gzip\r\n\r\n{}",
    "chunked twice over": b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "header without a name": b": x\r\ncontent-length: 0\r\n\r\n",
    "header with a space in its name": b"content length: 0\r\n\r\n",
    "header with NUL": b"x: a\0b\r\ncontent-length: 0\r\n\r\n",
    "length twice over": b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "two lengths in one": b"content-length: 2, 2\r\n\r\n{}",
    "chunks and length": b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "chunked in two headers": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding that is like chunked": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding that is none": b"transfer-encoding:\r\n\r\n0\r\n\r\n",
    "length as a trailer": b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 5\r\n\r\n",
    "space before a colon": b"content-length : 2\r\n\r\n{}",
    "line that ends with LF": b"x: a\ncontent-length: 2\r\n\r\n{}",
    "two hosts": b"host: x\r\ncontent-length: 2\r\n\r\n{}",
    "two other hosts": b"Host: y\r\ncontent-length: 2\r\n\r\n{}",
    "folded length": b"content-length:\r\n 2\r\n\r\n{}",
    "folded first header": b" x: a\r\ncontent-length: 2\r\n\r\n{}",
    "folded header": b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_wrong_frame_is_refused(served: Served, name: str) -> None:
    statuses = check_refusals(speak(served, [HEAD + b"connection: close\r\n" + WRONG_FRAMES[name]]))
    assert statuses, "refused with an answer"
    assert all(400 <= status < 500 for status in statuses)
    check_idle(served)


WELL_FRAMED = {"length of many zeros", "chunks too large"}
"""Refused for something else, so that the connection may go on."""


@pytest.mark.parametrize("name", sorted(WRONG_FRAMES.keys() - WELL_FRAMED))
def test_wrong_frame_is_the_last_of_its_connection(served: Served, name: str) -> None:
    """Nobody can tell whether what follows is part of it or another request."""
    assert len(check_refusals(speak(served, [HEAD + WRONG_FRAMES[name] + WHOLE]))) == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400),
        (b"GET http://a/health HTTP/1.1\r\n", 400),
        (b"GET /health HTTP/1.0\r\nhost: a\r\nhost: b\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost:\r\n", 200),
        (b"GET http://a/health HTTP/1.1\r\nhost: b\r\n", 200),
        (b"GET /health HTTP/1.0\r\n", 200),
        (b"GET /health HTTP/1.0\r\nhost: a\r\n", 200),
    ],
)
def test_host_is_there_once(served: Served, head: bytes, status: int) -> None:
    assert check_refusals(speak(served, [head + b"connection: close\r\n\r\n"])) == [status]


SCRAPS = [b"\r\n", b"\n", b"\0", b": ", b"HTTP/1.1", b"\xff"]


@st.composite
def mutated_request(draw: st.DrawFn) -> bytes:
    raw = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 6)))
        raw[start:end] = draw(
            st.binary(max_size=6) | st.sampled_from([b"\r\n", b"\n", b"\0", b": ", b"HTTP/1.1", b"\xff"])
        )
    return bytes(raw)


@search(120)
@given(mutated_request())
def test_request_with_wrong_bytes_is_answered_or_cut(served: Served, raw: bytes) -> None:
    check_refusals(speak(served, [raw], hangs_up=True))


@search(80)
@given(st.binary(max_size=300))
@example(raw=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
@example(raw=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
@example(raw=b"GET / HTTP/9.9\r\n\r\n")
@example(raw=b"\r\n" * 100)
def test_any_bytes_are_answered_or_cut(served: Served, raw: bytes) -> None:
    check_refusals(speak(served, [raw], hangs_up=True))


def test_nothing_is_left_of_all_this(served: Served) -> None:
    check_idle(served)
    assert served.engine.status().num_running == 0
    assert served.engine.audit(1.0) == []


@search(20)
@given(st.lists(st.sampled_from(["good", "bad", "models"]), min_size=1, max_size=6), CUTS)
def test_requests_behind_each_other_are_answered_in_order(served: Served, kinds: list[str], places: list[int]) -> None:
    post = HEAD.replace(b"x-request-id: fuzz", b"x-request-id: fuzz%d")
    raw = b""
    for number, kind in enumerate(kinds):
        is_last = number == len(kinds) - 1
        close = b"connection: close\r\n" if is_last else b""
        body = {"good": BODY, "bad": b"{"}.get(kind)
        if body is None:
            raw += b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-request-id: fuzz%d\r\n" % number + close + b"\r\n"
        else:
            raw += post % number + close + b"content-length: %d\r\n\r\n" % len(body) + body
    replies = replies_in(speak(served, cut(raw, places)))
    assert [reply.headers["x-request-id"] for reply in replies] == [f"fuzz{number}" for number in range(len(kinds))]
    assert [reply.status for reply in replies] == [400 if kind == "bad" else 200 for kind in kinds]
