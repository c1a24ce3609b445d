"""Compressed bodies: what is decoded, how much of it, and what is refused by name."""

import contextlib
import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadRequest
from server.wire.content_coding import CODINGS, MAX_MEMBERS, PIECE_BYTES, codings_in, inflate
from tests.server.conftest import Served, Start

JSON = {"content-type": "application/json"}
CHAT = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hello"}]}).encode()


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


CODED = {
    "gzip": gzip.compress(CHAT),
    "x-gzip": gzip.compress(CHAT),
    "GZIP": gzip.compress(CHAT),
    "deflate": zlib.compress(CHAT),
    "Deflate": raw_deflate(CHAT),
    "identity": CHAT,
    "": CHAT,
    "identity, gzip": gzip.compress(CHAT),
}


@pytest.mark.parametrize("coding", CODED)
def test_coded_body_is_answered_like_the_plain_one(served: Served, coding: str) -> None:
    headers = JSON | {"content-encoding": coding}
    response = served.http.post("/v1/chat/completions", content=CODED[coding], headers=headers)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello, world!"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/v1/route"])
def test_every_endpoint_takes_coded_bodies(served: Served, path: str) -> None:
    bodies = {
        "/v1/responses": {"model": "auto", "input": "hi"},
        "/detokenize": {"tokens": [1]},
        "/v1/completions": {"model": "auto", "prompt": "hi"},
    }
    body = gzip.compress(json.dumps(bodies.get(path, {"prompt": "hi"})).encode())
    response = served.http.post(path, content=body, headers=JSON | {"content-encoding": "gzip"})
    assert response.status_code == 200


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "x" * 500, "utf-8"])
def test_other_coding_is_refused_by_name(served: Served, coding: str) -> None:
    response = served.http.post("/v1/chat/completions", content=CHAT, headers=JSON | {"content-encoding": coding})
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, deflate"
    error = response.json()["error"]
    assert error["code"] == "unsupported_media_type"
    assert coding[:100] in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bomb_is_stopped_at_the_limit_of_bodies(start: Start, coding: str) -> None:
    """A hundred megabytes in a hundred kilobytes."""
    served = start()
    stream = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    bomb = b"".join(stream.compress(b" " * 2**20) for _ in range(100)) + stream.flush()
    assert len(bomb) < 200_000
    response = served.http.post("/v1/completions", content=bomb, headers=JSON | {"content-encoding": coding})
    assert response.status_code == 413
    assert "limits.max_body_bytes" in response.json()["error"]["message"]


def test_no_more_is_decoded_than_is_asked_for() -> None:
    pieces = inflate(gzip.compress(b" " * 100 * PIECE_BYTES), "gzip")
    assert len(next(pieces)) == PIECE_BYTES


@pytest.mark.parametrize("num_bytes", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_pieces_are_the_whole_body(coding: str, num_bytes: int) -> None:
    body = bytes(index * index % 251 for index in range(num_bytes))
    coded = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    pieces = list(inflate(coded, coding))
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) <= PIECE_BYTES


def test_members_of_gzip_are_read_one_after_the_other() -> None:
    coded = gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"cd")
    assert b"".join(inflate(coded, "gzip")) == b"abcd"
    assert b"".join(inflate(coded + b"\0" * 9, "gzip")) == b"abcd"


WRONG = {
    "cut short": ("gzip", gzip.compress(CHAT)[:-9], "ends too early"),
    "cut in its head": ("gzip", gzip.compress(CHAT)[:5], "ends too early"),
    "deflate cut short": ("deflate", zlib.compress(CHAT)[:-1], "ends too early"),
    "plain": ("gzip", CHAT, "no valid gzip"),
    "damaged": ("gzip", gzip.compress(CHAT)[:-8] + b"\1" * 8, "no valid gzip"),
    "of another coding": ("gzip", zlib.compress(CHAT), "no valid gzip"),
    "something behind it": ("gzip", gzip.compress(CHAT) + b"more", "no valid gzip"),
    "something behind deflate": ("deflate", zlib.compress(CHAT) + b"more", "4 bytes behind"),
    "many members": ("gzip", gzip.compress(b"") * (MAX_MEMBERS + 1), f"more than {MAX_MEMBERS}"),
}


@pytest.mark.parametrize("name", WRONG)
def test_damaged_body_is_refused(served: Served, name: str) -> None:
    coding, coded, why = WRONG[name]
    with pytest.raises(BadRequest, match=why):
        list(inflate(coded, coding))
    response = served.http.post("/v1/completions", content=coded, headers=JSON | {"content-encoding": coding})
    assert response.status_code == 400
    assert why in response.json()["error"]["message"]


@given(st.binary(max_size=300), st.sampled_from(CODINGS), st.lists(st.tuples(st.integers(0), st.integers(0, 255))))
def test_any_bytes_are_decoded_or_refused(body: bytes, coding: str, changes: list[tuple[int, int]]) -> None:
    """Also those of a whole body in which some are changed."""
    coded = bytearray(gzip.compress(body) if coding == "gzip" else zlib.compress(body))
    for place, byte in changes:
        coded[place % len(coded)] = byte
    for raw in (body, bytes(coded)):
        with contextlib.suppress(BadRequest):
            assert all(len(piece) <= PIECE_BYTES for piece in inflate(raw, coding))


def test_codings_are_read_from_every_header() -> None:
    assert codings_in(["gzip , identity", "", "BR"]) == ["gzip", "br"]
