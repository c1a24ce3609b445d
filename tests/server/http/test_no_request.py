"""What bytes that are no request are told: their true fault, never the parser's own words."""

import json

import pytest

from tests.server.conftest import Served
from tests.server.http.test_connection_limits import connect, read_all

POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
FAULTS = {
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello\r\n\r\n", "sent TLS"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 only"),
    "JSON": (b'{"model": "auto"}\r\n\r\n', "begin with a method"),
    "method": (b"FETCH / HTTP/1.1\r\nhost: x\r\n\r\n", "begin with a method"),
    "blank in the address": (b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n", "%20"),
    "letter in the address": ("GET /ä HTTP/1.1\r\nhost: x\r\n\r\n".encode(), "percent-encoded"),
    "version": (b"GET / HTTP/7.0\r\nhost: x\r\n\r\n", "1.0 or 1.1"),
    "coding": (
        POST + b"transfer-encoding: gzip\r\n\r\n{}",
        "transfer-encoding 'gzip' is not supported, only chunked is",
    ),
    "coding and chunks": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "'gzip, chunked' is not"),
    "chunks and coding": (POST + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n", "only chunked is"),
    "two frames": (POST + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n{}", "not both"),
    "length": (POST + b"content-length: 2x\r\n\r\n{}", "content-length is not a number"),
    "two lengths": (POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", "two content-length"),
    "name": (POST + b"con tent: 2\r\n\r\n{}", "name of a header"),
    "value": (POST + b"x-a: a\0b\r\n\r\n{}", "value of a header"),
    "folded": (POST + b"x-a: a\r\n b\r\n\r\n{}", "second line"),
    "chunk": (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "size of a chunk"),
    "line": (b"GET / HTTP/1.1\nhost: x\n\n", "CR LF"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_a_request_is_named(served: Served, name: str) -> None:
    raw, why = FAULTS[name]
    with connect(served) as connection:
        connection.sendall(raw)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    error = json.loads(body)["error"]
    assert error["code"] == "invalid_request"
    assert why in error["message"]


def test_chunks_in_any_case_are_read(served: Served) -> None:
    with connect(served) as connection:
        body = b'{"model": "auto", "prompt": "hello"}'
        connection.sendall(POST + b"connection: close\r\ntransfer-encoding: Chunked\r\n\r\n")
        connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")
