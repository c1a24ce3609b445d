"""HTTP on plain sockets, for requests that no client library would send, and simple requests with large bodies."""

import contextlib
import json
import re
import select
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest.chaos.attack import Target

PATIENCE_S = 90.0
_STATUS = re.compile(rb"HTTP/1\.[01] ([2-5]\d{2}) ")
"""Of a final answer: a server may send `100 Continue` before, to find out whether a client is still there."""
SILENCE = "silence"


def connect(target: Target, limit_s: float = 10.0) -> socket.socket:
    return socket.create_connection(target.address, timeout=limit_s)


def statuses_in(raw: bytes) -> list[str]:
    """Of every answer; the bodies of this server's own answers have no such line."""
    return [status.decode() for status in _STATUS.findall(raw)]


def read_all(connection: socket.socket, limit_s: float) -> bytes:
    """Until the server closes or has been silent for `limit_s`."""
    connection.settimeout(limit_s)
    parts = []
    with contextlib.suppress(OSError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def speak(target: Target, segments: Iterable[bytes], *, pause_s: float = 0.1, limit_s: float = 5.0) -> bytes:
    """Send the segments one after the other, and return all that comes back."""
    with connect(target) as connection:
        with contextlib.suppress(OSError):
            for segment in segments:
                connection.sendall(segment)
                time.sleep(pause_s)
        return read_all(connection, limit_s)


def first_status(raw: bytes) -> str:
    return next(iter(statuses_in(raw)), SILENCE)


def flood(target: Target, head: bytes, piece: bytes, *, limit_bytes: int, limit_s: float) -> tuple[str, int]:
    """Send `head` and then `piece` again and again until it is refused, the connection ends, or enough was sent; a
    request that is answered before its end goes on. Returns how it ended, and the bytes sent."""
    num_sent, end_s = 0, time.monotonic() + limit_s
    with connect(target) as connection:
        connection.sendall(head)
        connection.setblocking(False)
        while num_sent < limit_bytes and time.monotonic() < end_s:
            readable, writable, _ = select.select([connection], [connection], [], 0.1)
            try:
                if readable:
                    received = connection.recv(1 << 16)
                    if not received or first_status(received) >= "4":
                        return first_status(received) if received else "closed", num_sent
                if writable:
                    num_sent += connection.send(piece)
            except ConnectionError:
                return "closed", num_sent
    return "no end", num_sent


@dataclass(slots=True, kw_only=True, frozen=True)
class Reply:
    """`seconds` from the first byte sent to the last one read."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


def post(target: Target, path: str, body: dict[str, Any] | bytes, *, key: str | None = None, **headers: str) -> Reply:
    """Raises: httpx.HTTPError when there is no answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named |= {"content-type": "application/json", "authorization": f"Bearer {key or target.key}"}
    begun_s = time.monotonic()
    reply = httpx.post(target.url + path, content=content, headers=named, timeout=PATIENCE_S)
    return Reply(
        status=reply.status_code, headers=reply.headers, body=reply.content, seconds=time.monotonic() - begun_s
    )
