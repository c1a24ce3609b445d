"""Offers to speak another protocol: they are ignored, and the request is answered as if it made none."""

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.server.conftest import Served, Start, until
from tests.server.fuzzing import search
from tests.server.http.test_connection_limits import connect, read_all, refusal
from tests.server.http.test_fuzz_http import cut, replies_in, speak

BODY = json.dumps({"model": "auto", "prompt": "hello", "max_tokens": 4}).encode()
SMUGGLED = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: first\r\n"
LAST = b"GET /version HTTP/1.1\r\nhost: x\r\nx-request-id: last\r\nconnection: close\r\n\r\n"
OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n",
    "keep-alive": b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-version: 13\r\n",
    "with expect": b"expect: 100-continue\r\nconnection: upgrade\r\nupgrade: h2c\r\n",
}
FRAMES = {
    "length": b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    "chunks": b"transfer-encoding: chunked\r\n\r\n5\r\n"
    + BODY[:5]
    + b"\r\n%x\r\n" % (len(BODY) - 5)
    + BODY[5:]
    + b"\r\n0\r\nx-trailer: 1\r\n\r\n",
}


def answered(raw: bytes) -> list[tuple[int, str]]:
    replies = replies_in(raw.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))
    return [(reply.status, reply.headers["x-request-id"]) for reply in replies]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("offer", OFFERS)
def test_body_belongs_to_the_request_that_offers(served: Served, offer: str, frame: str) -> None:
    """In one segment, in two, and a byte at a time; the connection goes on."""
    request = HEAD + OFFERS[offer] + FRAMES[frame]
    head = request.index(b"\r\n\r\n") + 4
    for segments in ([request + LAST], [request[:head], request[head:] + LAST], cut(request + LAST, range(9999))):
        assert answered(speak(served, segments)) == [(200, "first"), (200, "last")]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("is_split", [True, False])
def test_body_is_never_a_request(served: Served, offer: str, is_split: bool) -> None:
    head = HEAD + OFFERS[offer] + b"content-length: %d\r\n\r\n" % len(SMUGGLED)
    with connect(served) as connection:
        connection.sendall(head if is_split else head + SMUGGLED)
        if is_split:
            time.sleep(0.1)
            connection.sendall(SMUGGLED)
        connection.sendall(LAST)
        assert answered(read_all(connection)) == [(400, "first"), (200, "last")]


WHOLE = HEAD + OFFERS["h2c"] + FRAMES["chunks"] + HEAD + OFFERS["websocket"] + FRAMES["length"] + LAST


@search(40)
@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=12))
@example(places=[])
def test_offers_in_any_segments_are_ignored(served: Served, places: list[int]) -> None:
    assert answered(speak(served, cut(WHOLE, places))) == [(200, "first"), (200, "first"), (200, "last")]


@pytest.mark.parametrize("offer", OFFERS)
def test_offer_without_a_body_is_answered(served: Served, offer: str) -> None:
    get = b"GET /version HTTP/1.1\r\nhost: x\r\nx-request-id: get\r\n" + OFFERS[offer] + b"\r\n"
    assert answered(speak(served, [get * 3 + LAST])) == [(200, "get")] * 3 + [(200, "last")]


def test_offer_that_also_closes_is_closed(served: Served) -> None:
    get = b"GET /version HTTP/1.1\r\nhost: x\r\nx-request-id: get\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n"
    assert answered(speak(served, [get + LAST])) == [(200, "get")]


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
        b"transfer-encoding: gzip\r\n\r\n{}",
        b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_offer_does_not_excuse_wrong_framing(served: Served, framing: bytes) -> None:
    with connect(served) as connection:
        connection.sendall(HEAD + OFFERS["h2c"] + framing + LAST)
        assert refusal(read_all(connection)) == (400, "invalid_request")
    assert until(lambda: not served.context.drain.open_keys)


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
        b"GET /version HTTP/2.0\r\nhost: x\r\n\r\n" + LAST,
        b"GET /version HTTP/0.9\r\n\r\n" + LAST,
        b"GET /version\r\n\r\n" + LAST,
        b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n" + LAST,
        b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\ncontent-length: 90\r\n\r\n" + LAST,
    ],
)
def test_other_protocols_get_one_refusal(start: Start, sent: bytes) -> None:
    served = start()
    with connect(served) as connection:
        connection.sendall(sent)
        raw = read_all(connection)
    assert refusal(raw) == (400, "invalid_request")
    assert (b"HTTP/1.1 only" in raw) is (b"CONNECT" not in sent)
    assert (b"no proxy" in raw) is (b"CONNECT" in sent)
