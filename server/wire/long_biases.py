"""Decodes a body with a long `logit_bias` in pieces: one call of the decoder keeps the interpreter from all other
threads until it returns."""

from typing import TypeVar

import msgspec

from server.wire.base import Bias, RequestBody

W = TypeVar("W", bound=RequestBody)

FIELD = "logit_bias"
LONG_BYTES = 64 * 1024
PIECE_BYTES = 16 * 1024

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_biases = msgspec.json.Decoder(dict[str, Bias])
_encoder = msgspec.json.Encoder()


def decode_in_pieces(body: bytes, decoder: msgspec.json.Decoder[W]) -> W:
    """What `decoder.decode` returns. Raises: what that raises."""
    read = _read_apart(body) if len(body) > LONG_BYTES else None
    if read is None:
        return decoder.decode(body)
    rest, biases = read
    try:
        return msgspec.structs.replace(decoder.decode(rest), **{FIELD: biases})
    except (msgspec.DecodeError, UnicodeDecodeError):  # of which the whole body names the place
        return decoder.decode(body)


def _read_apart(body: bytes) -> tuple[bytes, dict[str, float]] | None:
    """The body with an empty field, and what was in it; None for a short field, and for anything wrong, which the typed
    decoder says better."""
    try:
        fields = _fields.decode(body)
        raw = bytes(fields.get(FIELD, b""))
        biases = _read_map(raw) if len(raw) > LONG_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if biases is None:
        return None
    fields[FIELD] = msgspec.Raw(b"{}")
    return _encoder.encode(fields), biases


def _read_map(raw: bytes) -> dict[str, float] | None:
    """None for one that cannot be cut at its commas."""
    if raw.count(b"{") != 1 or b"[" in raw or b"\\" in raw:
        return None
    inner, biases, start = raw[raw.index(b"{") + 1 : raw.rindex(b"}")], dict[str, float](), 0
    while start < len(inner):
        end = inner.find(b",", start + PIECE_BYTES)
        if end < 0:
            end = len(inner)
        if inner.count(b'"', start, end) % 2:  # the comma is in a key
            return None
        biases.update(_biases.decode(b"{%b}" % inner[start:end]))
        start = end + 1
    return biases
