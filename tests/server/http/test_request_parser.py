"""Bytes to events, however they are cut."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.request_parser import RequestParser, Stage
from tests.server.http.test_fuzz_http import cut

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\n\r\n\r\n\r\nabc"
CHUNKS = b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n\n\r\n\r\n\r\n1;a=b\r\nd\r\n0\r\n\r\n"
ALL = b"\r\n" + GET + POST + b"\r\n\r\n" + CHUNKS + GET


class Heard:
    """Keeps every event, a body in one piece."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, list[tuple[bytes, bytes]], bytes]] = []
        self.is_whole = True

    def on_message_begin(self) -> None:
        self.is_whole = False
        self._url = self._body = b""
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        pass

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.is_whole = True
        self.requests.append((self._url, self._headers, self._body))


def feed(segments: list[bytes]) -> Iterator[Heard]:
    """The events so far, after every piece."""
    heard = Heard()
    parser = RequestParser(heard)
    data = bytearray()
    for segment in segments:
        data += segment
        while data:
            parser.feed_data(parser.take_piece(data))
            yield heard


@given(st.sets(st.integers(1, len(ALL) - 1), max_size=8))
def test_every_request_comes_out_whole_and_ends_its_piece(places: set[int]) -> None:
    num_whole = 0
    for heard in feed(cut(ALL, places)):
        num_new = len(heard.requests) - num_whole
        assert num_new == 0 or (num_new == 1 and heard.is_whole)
        num_whole += num_new
    assert [(url, body) for url, _, body in heard.requests] == [
        (b"/a", b""),
        (b"/b", b"\r\n\r\nabc"),
        (b"/c", b"\n\r\n\r\nd"),
        (b"/a", b""),
    ]


def test_body_of_a_known_length_is_one_piece() -> None:
    parser = RequestParser(Heard())
    data = bytearray(POST + GET)
    assert [parser.take_piece(data)] == [POST[:-3]]
    parser.feed_data(POST[:-3])
    assert parser.take_piece(data) == b"abc"
    assert data == GET


@pytest.mark.parametrize("digits", [b"0", b"0" * 5000, b"0" * 5000 + b"3", b"3 "])
def test_length_may_be_written_in_odd_ways(digits: bytes) -> None:
    heard = Heard()
    parser = RequestParser(heard)
    parser.feed_data(b"POST / HTTP/1.1\r\ncontent-length: " + digits + b"\r\n\r\n" + b"abc" * (b"3" in digits))
    assert parser.stage is Stage.BETWEEN_REQUESTS
    assert len(heard.requests) == 1
