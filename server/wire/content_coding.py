"""Compressed bodies of requests: which codings there are, and decoding them piece by piece."""

import zlib
from collections.abc import Generator, Iterator

from models.errors import BadRequest

CODINGS = ("gzip", "deflate")
PIECE_BYTES = 64 * 1024
"""So much comes out in one go: others may run between two pieces, and a bomb is noticed after one too many."""
MAX_MEMBERS = 100
"""A body of gzip may be several, one behind the other; small ones cost far more time than their bytes show."""

_ALIASES = {"x-gzip": "gzip"}  # RFC 9110 8.4.1.3
_RAW, _ZLIB, _GZIP = -zlib.MAX_WBITS, zlib.MAX_WBITS, zlib.MAX_WBITS | 16


def codings_in(values: list[str]) -> list[str]:
    """The codings that `content-encoding` headers name, in the order in which they were applied."""
    named = [coding.strip().lower() for value in values for coding in value.split(",")]
    return [_ALIASES.get(coding, coding) for coding in named if coding not in ("", "identity")]


def inflate(body: bytes, coding: str) -> Iterator[bytes]:
    """The decoded body in pieces of at most `PIECE_BYTES`, some of them empty. Raises: BadRequest."""
    try:
        for _ in range(MAX_MEMBERS):
            if not body:
                return
            body = yield from _inflate_one(body, coding)
    except zlib.error:
        raise BadRequest(f"the body is no valid {coding} data, although its content-encoding says so") from None
    if body:
        raise BadRequest(f"the body is more than {MAX_MEMBERS} pieces of {coding} data, one behind the other")


def _inflate_one(body: bytes, coding: str) -> Generator[bytes, None, bytes]:
    """Yields what one stream of data holds, and returns what is left behind it."""
    stream = zlib.decompressobj(_GZIP if coding == "gzip" else _format_of(body))
    while True:
        piece = stream.decompress(body, PIECE_BYTES)
        body = stream.unconsumed_tail
        yield piece
        if not body and len(piece) < PIECE_BYTES:
            break
    if not stream.eof:
        raise BadRequest(f"the body's {coding} data ends too early")
    rest = stream.unused_data
    if coding != "gzip" and rest:
        raise BadRequest(f"the body has {len(rest)} bytes behind its {coding} data")
    return rest if rest.strip(b"\0") else b""  # gzip is padded with zeros


def _format_of(body: bytes) -> int:
    """`deflate` has a zlib header, which some clients leave out. Source: RFC 9110 8.4.1.2; RFC 1950 2.2."""
    has_header = len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    return _ZLIB if has_header else _RAW
