"""Server-sent events as bytes: framing, and chunks whose constant part is encoded once per request.

Source: OpenAI API reference, streaming: `data: {json}`, a blank line, and `data: [DONE]` at the end.
"""

from dataclasses import dataclass

import msgspec

from server.wire.base import encoder

DONE = b"data: [DONE]\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)

TEXT_MARK = "\N{REPLACEMENT CHARACTER}fenhe text\N{REPLACEMENT CHARACTER}"
_MARK_BYTES = encoder.encode(TEXT_MARK)


def frame(body: bytes) -> bytes:
    """One event. `body` is JSON, which holds no raw line break."""
    return b"data: " + body + b"\n\n"


def typed_frame(kind: str, body: bytes) -> bytes:
    """One event that says its type, as `/v1/responses` has them."""
    return b"event: " + kind.encode() + b"\n" + frame(body)


@dataclass(slots=True, frozen=True)
class TextChunk:
    """A chunk that differs from the next one only in its text."""

    before: bytes
    after: bytes

    def fill(self, text: str) -> bytes:
        """The framed chunk with this text."""
        return self.before + encoder.encode(text) + self.after


def text_chunk(chunk: msgspec.Struct, kind: str | None = None) -> TextChunk:
    """Cut an encoded chunk, or event of this type, at the text `TEXT_MARK`, which it must hold once."""
    body = encoder.encode(chunk)
    before, after = (frame(body) if kind is None else typed_frame(kind, body)).split(_MARK_BYTES)
    return TextChunk(before, after)
