"""What is wrong with a body that is no JSON, in words: the decoder's own are of the place where it gave up."""

import re

import msgspec

from models.errors import BadRequest
from server.wire.base import any_decoder

_MARKS = {
    b"\xef\xbb\xbf": "begins with a byte order mark (BOM); send UTF-8 without one",
    b"\xff\xfe": "is UTF-16 or UTF-32; send UTF-8",
    b"\xfe\xff": "is UTF-16; send UTF-8",
    b"\x1f\x8b": "is gzip data; say so with `content-encoding: gzip`",
    b"\x78\x01": "is deflate data; say so with `content-encoding: deflate`",
    b"\x78\x9c": "is deflate data; say so with `content-encoding: deflate`",
    b"\x78\xda": "is deflate data; say so with `content-encoding: deflate`",
    b"\x28\xb5\x2f\xfd": "is zstd data, which this server does not decode; send it as it is, or as gzip",
}
"""By the first bytes."""

_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_PLACE = re.compile(r"\(byte (\d+)\)$")
_NO_NUMBER = re.compile(rb"-?(NaN|Infinity)")
_HIGH, _LOW = range(0xD800, 0xDC00), range(0xDC00, 0xE000)


def not_json(body: bytes, error: Exception) -> BadRequest:
    """`error` is the decoder's."""
    return BadRequest(f"the body {_fault(body, error)}")


def _fault(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "is empty; it must be a JSON object"
    for mark, what in _MARKS.items():
        if body.startswith(mark):
            return what
    if b"\0" in body[:4]:
        return "is UTF-16 or UTF-32; send UTF-8"
    return _wrong_bytes(body) or _wrong_pair(body) or _wrong_number(body, error) or f"is not valid JSON: {error}"


def _wrong_bytes(body: bytes) -> str | None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        wrong = body[error.start : error.start + 2]
        if wrong[:1] == b"\xed" and wrong[1:] >= b"\xa0":
            return f"has half a surrogate pair at byte {error.start}, which is no character in UTF-8"
        return f"is not UTF-8: byte {error.start} is 0x{wrong[0]:02x}"
    return None


def _wrong_pair(body: bytes) -> str | None:
    """What is said of half a surrogate pair, where everything else is right."""
    halves = _find_halves(body)
    if not halves:
        return None
    repaired = bytearray(body)
    for place in halves:
        repaired[place : place + 6] = rb"\ufffd"
    try:
        any_decoder.decode(repaired)
    except (msgspec.DecodeError, RecursionError):
        return None
    half = body[halves[0] : halves[0] + 6].decode()
    return f"has half a surrogate pair, {half} at byte {halves[0]}: a text that was cut inside a character"


def _find_halves(body: bytes) -> list[int]:
    """Where escapes stand that are half a surrogate pair."""
    found: list[int] = []
    last_high = -1
    for escape in _ESCAPE.finditer(body):
        unit = int(escape[1], 16) if escape[1] else 0
        if unit in _LOW and last_high == escape.start() - 6:
            found.pop()
            last_high = -1
        elif unit in _HIGH or unit in _LOW:
            found.append(escape.start())
            last_high = escape.start() if unit in _HIGH else -1
    return found


def _wrong_number(body: bytes, error: Exception) -> str | None:
    place = _PLACE.search(str(error))
    if place is None:
        return None
    wrong = int(place[1])  # of `-Infinity` the second byte
    found = _NO_NUMBER.match(body, max(0, wrong - 1)) or _NO_NUMBER.match(body, wrong)
    return None if found is None else f"has {found[0].decode()} at byte {found.start()}, which JSON does not know"
