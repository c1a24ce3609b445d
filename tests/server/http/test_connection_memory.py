"""A connection's objects end with it, without a garbage collection, and give back what a client made them hold."""

import gc
import socket
import struct
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from server.http.connection_limits import BoundedProtocol
from server.settings.config import Limits
from tests.server.conftest import Served, Start, until
from tests.server.http.test_connection_limits import connect

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
SLOW = b'{"model":"auto","prompt":"slow","max_tokens":50}'
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
STREAM = SLOW.replace(b"}", b',"stream":true}')


@pytest.fixture
def _no_collections() -> Iterator[None]:
    """What was there before is left out of `gc.get_objects()`, which then takes little time whatever is imported."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def protocols() -> list[BoundedProtocol]:
    """By their type itself: `isinstance` asks lazy objects of other packages for their class, which may warn."""
    return [one for one in gc.get_objects() if issubclass(type(one), BoundedProtocol)]


def protocol_of(served: Served) -> "weakref.ref[Any]":
    """Of the only connection."""
    (found,) = (one for one in protocols() if one in one.connections)
    return weakref.ref(found)


@pytest.mark.usefixtures("_no_collections")
@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize(
    "sent",
    {
        "nothing": b"",
        "answered": GET + b"\r\n",
        "half a head": GET,
        "half a body": POST + b"content-length: 100\r\n\r\n{",
        "too many trailers": GET + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: 1\r\n" * 30,
        "no http": GET + b"\r\n\0\0\0",
        "too long a head": GET + b"x: " + b"a" * 3000,
        "upgrade": GET + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n",
        "answering": POST + b"content-length: %d\r\n\r\n" % len(STREAM) + STREAM,
        "held behind a slow one": POST + b"content-length: %d\r\n\r\n" % len(SLOW) + SLOW + (GET + b"\r\n") * 30,
    }.items(),
    ids=lambda value: value[0].replace(" ", "-") if isinstance(value, tuple) else None,
)
def test_protocol_ends_with_its_connection(start: Start, sent: tuple[str, bytes], is_reset: bool) -> None:
    served = start(limits=Limits(max_head_bytes=2000, max_headers=20))
    served.http.close()
    with connect(served) as connection:
        connection.sendall(GET + b"\r\n" if sent[0] == "answered" else sent[1])
        if sent[1] and not sent[0].startswith(("half", "held")):
            assert connection.recv(65536)
        assert until(lambda: bool(protocols()))
        protocol = protocol_of(served)
        if is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert until(lambda: protocol() is None)
