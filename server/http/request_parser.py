"""Bytes to requests, one request at a time: httptools alone would parse all that a buffer holds.

It knows no limits and answers nothing.
"""

import re
from enum import Enum
from typing import Protocol

import httptools

_END = re.compile(rb"\A[\r\n]+|\n\r\n[\r\n]*")
"""Where a head or a chunked body may end, with the empty lines behind it. The first alternative is for an end whose
first bytes came before."""


FRAMING = (b"content-length", b"transfer-encoding")
CHUNK_BYTES = 20
"""What a chunk has around its data: up to 16 digits and two line ends."""


class RequestEvents(Protocol):
    """The parser's callbacks for every request, in this order."""

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class Stage(Enum):
    BETWEEN_REQUESTS = "between requests"
    HEAD = "head"
    BODY = "body"


class RequestParser:
    """Cuts the bytes that came into pieces and parses them; uvicorn uses it in place of httptools' own parser.

    An offer to upgrade is ignored: such a request is parsed like any other, with its body. Source: RFC 9110 7.8.

    Trailers are counted and dropped. Source: RFC 9110 6.5.1, they must not be merged into the headers.

    Must be closed: httptools' parser refers back to it, so that both would wait for a garbage collection.
    """

    def __init__(self, events: RequestEvents) -> None:
        self.stage = Stage.BETWEEN_REQUESTS
        self.num_trailers = 0
        """Of the current request, and of the last one until the next begins."""
        self._events = events
        self._framing: list[bytes] = []
        """The header lines that say where the body ends."""
        self._is_muted = False
        self._num_bytes_left = 0
        """What is still to come of a body whose length was announced."""
        self._num_trailer_bytes = 0
        self._num_bytes_between_chunks = 0
        self._parser = self._make_parser()

    def _make_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # Bytes behind a request that ends its connection do not make that request a wrong one.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    @property
    def num_trailer_bytes(self) -> int:
        """Includes a trailer that has not ended, and chunk extensions longer than the data of their chunks: which of
        the two such bytes are shows only at the end."""
        return max(self._num_trailer_bytes, self._num_bytes_between_chunks)

    def close(self) -> None:
        del self._parser, self._events

    def take_piece(self, data: bytearray) -> bytes:
        """Remove and return the first piece: it holds the end of one request at most, and then nothing behind it."""
        end = self._end_of_piece(data)
        with memoryview(data) as view:
            piece = bytes(view[:end])
        del data[:end]  # cheap: a bytearray only moves its start
        return piece

    def feed_data(self, data: bytes) -> None:
        """Raises: HttpParserError."""
        if self.stage is Stage.BETWEEN_REQUESTS and self.num_trailers:
            self._parser = self._make_parser()  # after `connection: close` as a trailer the old one reads no more
        elif self.stage is Stage.BODY and self._num_bytes_left <= 0:
            self._num_bytes_between_chunks += len(data)  # `on_body` takes off what was data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            self._parser.feed_data(data[upgrade.args[0] :])

    def _ignore_upgrade(self) -> None:
        """httptools has ended the request at its head, and would take the body for the next request. Feed it another
        head, with the same framing and without the offer, whose events go nowhere: the body follows it."""
        self._is_muted = True
        version = self.get_http_version().encode()
        self._parser.feed_data(b"POST / HTTP/%s\r\n%s\r\n" % (version, b"".join(self._framing)))

    def get_http_version(self) -> str:
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """uvicorn asks whether it should treat the body as another protocol's."""
        return False

    def on_message_begin(self) -> None:
        if self._is_muted:
            return
        self._framing.clear()
        self.stage = Stage.HEAD
        self._num_bytes_left = 0
        self.num_trailers = self._num_trailer_bytes = self._num_bytes_between_chunks = 0
        self._events.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_muted:
            self._events.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_muted:
            return
        if self.stage is Stage.BODY:
            self.num_trailers += 1
            self._num_trailer_bytes += len(name) + len(value)
            return
        if name.lower() in FRAMING:
            self._framing.append(b"%s: %s\r\n" % (name, value))
        if name.lower() == b"content-length":
            self._num_bytes_left = _number(value)
        self._events.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_muted:
            self._is_muted = False
            return
        self._events.on_headers_complete()
        self.stage = Stage.BODY

    def on_body(self, body: bytes) -> None:
        self._num_bytes_left -= len(body)
        self._num_bytes_between_chunks = max(0, self._num_bytes_between_chunks - 2 * len(body) - CHUNK_BYTES)
        self._events.on_body(body)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():  # only for httptools
            return
        self.stage = Stage.BETWEEN_REQUESTS
        self._events.on_message_complete()

    def _end_of_piece(self, data: bytearray) -> int:
        if self.stage is Stage.BODY and self._num_bytes_left > 0:
            return min(self._num_bytes_left, len(data))
        end = _END.search(data)
        return len(data) if end is None else end.end()


def _number(digits: bytes) -> int:
    """A length that httptools has checked. Leading zeros are dropped: int() refuses very long texts."""
    return int(digits.lstrip(b"0").strip() or b"0")
