"""Kinds of a soak that no HTTP client library would send, or that change the server: framing, reloads, students."""

import asyncio
import contextlib
import json
import random
import re
from dataclasses import dataclass

from loadtest.ledger import Outcome
from loadtest.served import TENANT_KEYS

PATIENCE_S = 60.0
_STATUS = re.compile(rb"HTTP/1\.[01] ([2-5]\d{2}) ")
_END = b"connection: close\r\n\r\n"
_LAST = b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + _END
_OFFERS = (
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\n",
)
GOOD_SETTINGS = "grace_s = 20\n"
DAMAGED_SETTINGS = ("grace_s = ", "grace_s = -1\n", "surprise = 1\n", "[keys]\nfile = '/nowhere/keys.toml'\n", "\0")


@dataclass(slots=True, kw_only=True, frozen=True)
class Fault:
    """Bytes on a connection of their own. `allowed` are the lists of statuses that may come back; `ends_its_side`: the
    client says that nothing more will come, and still waits for the answer."""

    segments: tuple[bytes, ...]
    allowed: frozenset[tuple[str, ...]]
    ends_its_side: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class Reload:
    """The settings file gets this text, and the server is told to read it."""

    text: str

    @property
    def is_good(self) -> bool:
        return self.text == GOOD_SETTINGS


@dataclass(slots=True, kw_only=True, frozen=True)
class DamagedStudent:
    """A student whose weights are damaged is added, and removed once it was refused."""


def _post(rng: random.Random, headers: bytes, body: bytes, *, has_key: bool = True) -> bytes:
    key = f"authorization: Bearer {rng.choice(TENANT_KEYS)}\r\n".encode() if has_key else b""
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" + key + headers + body
    )


def _completion(rng: random.Random) -> bytes:
    return json.dumps({"model": "auto", "prompt": f"hello {rng.randrange(99)}", "max_tokens": 2}).encode()


def _length(body: bytes) -> bytes:
    return b"content-length: %d\r\n\r\n" % len(body)


def many_trailers(rng: random.Random) -> Fault:
    head = b"GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    trailers = b"".join(b"x-%05d: %s\r\n" % (index, b"a" * 48) for index in range(4000))
    return Fault(segments=(head, trailers), allowed=frozenset({("431",), ("200",), ("200", "431"), ()}))


def key_as_trailer(rng: random.Random) -> Fault:
    body = _completion(rng)
    trailer = f"authorization: Bearer {rng.choice(TENANT_KEYS)}\r\n\r\n".encode()
    chunked = b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(body), body)
    segments = (_post(rng, b"connection: close\r\n", chunked, has_key=False), trailer)
    return Fault(segments=segments, allowed=frozenset({("401",)}))


def upgrade(rng: random.Random) -> Fault:
    """The body of a request that offers another protocol, which may look like a request, in a segment of its own."""
    is_smuggled = rng.random() < 0.5
    body = _LAST if is_smuggled else _completion(rng)
    first = ("400",) if is_smuggled else ("200", "429")
    segments = (_post(rng, rng.choice(_OFFERS), _length(body)), body, _LAST)
    return Fault(segments=segments, allowed=frozenset((status, "200") for status in first))


def half_closed(rng: random.Random) -> Fault:
    body = _completion(rng)
    allowed = frozenset({("200",), ("429",)})
    return Fault(segments=(_post(rng, b"", _length(body) + body),), allowed=allowed, ends_its_side=True)


def pipelined(rng: random.Random) -> Fault:
    count = rng.randint(2, 200)
    request = _LAST.replace(_END, b"\r\n")
    return Fault(segments=(request * count + _LAST,), allowed=frozenset({("200",) * (count + 1)}))


def reloaded(rng: random.Random) -> Reload:
    return Reload(text=rng.choice((GOOD_SETTINGS, *DAMAGED_SETTINGS)))


def damaged_student(rng: random.Random) -> DamagedStudent:
    return DamagedStudent()


async def send_fault(host: str, port: int, fault: Fault) -> Outcome:
    try:
        async with asyncio.timeout(PATIENCE_S):
            raw = await _exchange(host, port, fault)
    except TimeoutError:
        return Outcome(what="no answer", problem=f"nothing came within {PATIENCE_S:g} s")
    except OSError as error:
        return Outcome(what="broken", problem=f"the connection failed: {type(error).__name__}: {error}")
    statuses = tuple(status.decode() for status in _STATUS.findall(raw))
    what = " ".join(sorted(set(statuses))) or "closed"
    return Outcome(what=what, problem=None if statuses in fault.allowed else f"answered {statuses[:5]}: {raw[:200]!r}")


async def _exchange(host: str, port: int, fault: Fault) -> bytes:
    """All that comes back until the server ends the connection, or resets it."""
    reader, writer = await asyncio.open_connection(host, port)
    parts: list[bytes] = []
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        for number, segment in enumerate(fault.segments):
            await asyncio.sleep(0.01 if number else 0.0)
            writer.write(segment)
            await writer.drain()
        if fault.ends_its_side:
            writer.write_eof()
        while part := await reader.read(1 << 16):
            parts.append(part)
    return b"".join(parts)
