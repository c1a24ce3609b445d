"""What a body that is no JSON is told: its true fault."""

import codecs
import gzip
import json
import zlib

import msgspec
import pytest

from models.errors import BadRequest
from server.wire.chat import chat_decoder
from server.wire.decode import decode_body
from tests.server.conftest import Served

TEXT = '{"model": "auto", "messages": [{"role": "user", "content": "%s"}], "max_tokens": 2}'
PLAIN = TEXT % "ä"
FAULTS = {
    "nothing": (b"", "is empty"),
    "blanks": (b" \r\n", "is empty"),
    "mark of UTF-8": (codecs.BOM_UTF8 + PLAIN.encode(), "byte order mark (BOM)"),
    "UTF-16": (PLAIN.encode("utf-16"), "UTF-16"),
    "UTF-16, big": (codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"), "UTF-16"),
    "UTF-16 without mark": (PLAIN.encode("utf-16-le"), "UTF-16"),
    "UTF-32": (PLAIN.encode("utf-32"), "UTF-32"),
    "Latin-1": (PLAIN.encode("latin-1"), "is not UTF-8: byte 60 is 0xe4"),
    "half a character": (PLAIN.encode()[:61], "is not UTF-8: byte 60 is 0xc3"),
    "gzip": (gzip.compress(PLAIN.encode()), "content-encoding: gzip"),
    "deflate": (zlib.compress(PLAIN.encode()), "content-encoding: deflate"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", "zstd"),
    "high half": ((TEXT % r"a\ud83d").encode(), r"half a surrogate pair, \ud83d at byte 61"),
    "high half inside": ((TEXT % r"a\ud83d b").encode(), r"half a surrogate pair, \ud83d at byte 61"),
    "high half before another escape": ((TEXT % r"\ud83d\u0041").encode(), r"\ud83d at byte 60"),
    "two high halves": ((TEXT % r"\ud83d\ud83d\ude00").encode(), r"\ud83d at byte 60"),
    "low half": ((TEXT % r"\uDE00 a").encode(), r"half a surrogate pair, \uDE00 at byte 60"),
    "half in a name": (rb'{"\ud800": 1}', r"half a surrogate pair, \ud800 at byte 2"),
    "half as bytes": ((TEXT % "\ud83d").encode("utf-8", "surrogatepass"), "half a surrogate pair at byte 60"),
    "NaN": (PLAIN.replace("2}", "NaN}").encode(), "has NaN at byte"),
    "Infinity": (PLAIN.replace("2}", "-Infinity}").encode(), "has -Infinity at byte"),
    "comma": ((TEXT % "a").replace("2}", "2,}").encode(), "not valid JSON: JSON is malformed: trailing comma"),
    "comma before a half": ((TEXT % r"\ud83d").replace("2}", "2,}").encode(), "not valid JSON"),
    "cut short": ((TEXT % "a")[:-1].encode(), "not valid JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(served: Served, name: str) -> None:
    body, why = FAULTS[name]
    response = served.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert why in message
    assert len(message) < 250


@pytest.mark.parametrize("text", [r"\ud83d\ude00", r"\\ud83d", r"\\\\ud800 \"\ud83d\uDE00\"", r"\/\ud83d\ude00\n"])
def test_whole_pairs_and_backslashes_are_no_fault(text: str) -> None:
    body = (TEXT % text).encode()
    assert decode_body(body, chat_decoder).messages[0].content == json.loads(f'"{text}"')
    with pytest.raises(BadRequest, match="trailing comma"):
        decode_body(body.replace(b"2}", b"2,}"), chat_decoder)


def test_half_in_a_long_body_is_found() -> None:
    body = (TEXT % ("\\n" * 100_000 + r"\ud83d")).encode()
    with pytest.raises(BadRequest, match=f"at byte {60 + 200_000}:"):
        decode_body(body, msgspec.json.Decoder(type=chat_decoder.type))
