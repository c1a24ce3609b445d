"""A long `logit_bias` is decoded in pieces, and nobody can tell from the result."""

from typing import Any

import msgspec
import pytest

from models.errors import ServingError
from server.wire import long_biases
from server.wire.chat import ChatRequest, chat_decoder
from server.wire.decode import decode_body
from server.wire.tokens import TokenizeRequest

CHAT: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": 'héllo \\ " {'}]}
LONG = {str(token): (-1) ** token * token / 1000 for token in range(20_000)}


def body_with(biases: Any, **fields: Any) -> bytes:
    return msgspec.json.encode({**CHAT, "logit_bias": biases, **fields})


def decoded(body: bytes) -> ChatRequest:
    return decode_body(body, chat_decoder)


class Counted:
    """A decoder of biases that notes how much it is given at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._real = msgspec.json.Decoder(dict[str, float])

    def decode(self, piece: bytes) -> dict[str, float]:
        self.sizes.append(len(piece))
        return self._real.decode(piece)


def test_no_call_decodes_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    monkeypatch.setattr(long_biases, "_biases", counted)
    body = body_with(LONG)
    read = decoded(body)
    assert read == chat_decoder.decode(body)
    assert read.logit_bias is not None
    assert list(read.logit_bias) == list(LONG)
    assert len(counted.sizes) > 10
    assert max(counted.sizes) < long_biases.PIECE_BYTES + 100


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(msgspec.json.format(msgspec.json.encode(LONG), indent=2), id="with blanks"),
        pytest.param(b'{"7":1,' + msgspec.json.encode(LONG)[1:-1] + b',"7":2}', id="a key twice"),
        pytest.param(msgspec.json.encode({**LONG, "a,b": 1.0}), id="a comma in a key"),
        pytest.param(msgspec.json.encode({",": 1.0, "x" * 17_000 + ",": 2.0, **LONG}), id="a comma where a piece ends"),
        pytest.param(msgspec.json.encode({**LONG, 'a"b\\': 1.0}), id="a quote in a key"),
        pytest.param(msgspec.json.encode({**LONG, "{": 1.0, "[": 1.0}), id="brackets in a key"),
        pytest.param(b'{"\\u0031":1,' + msgspec.json.encode(LONG)[1:], id="an escape"),
    ],
)
def test_any_form_is_read_as_in_one_piece(text: bytes) -> None:
    body = msgspec.json.encode({**CHAT, "logit_bias": msgspec.Raw(text), "seed": 5})
    assert decoded(body) == chat_decoder.decode(body)


def test_field_that_comes_twice_counts_as_in_one_piece() -> None:
    body = body_with(LONG)[:-1] + b',"logit_bias":' + msgspec.json.encode({**LONG, "3": 4.0}) + b"}"
    assert decoded(body) == chat_decoder.decode(body)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(msgspec.json.encode(LONG)[:-1] + b",}", id="a comma at the end"),
        pytest.param(msgspec.json.encode(LONG)[:-1] + b',,"1":2}', id="two commas"),
        pytest.param(msgspec.json.encode(LONG)[:-1] + b',"1"}', id="no value"),
        pytest.param(msgspec.json.encode(LONG)[:-1], id="no end"),
        pytest.param(msgspec.json.encode({**LONG, "1": 101.0}), id="too large"),
        pytest.param(msgspec.json.encode({**LONG, "1": "1"}), id="a text"),
        pytest.param(msgspec.json.encode({**LONG, "1": {"2": 3}}), id="an object"),
        pytest.param(msgspec.json.encode(LONG)[:-1] + b',"\xff":1}', id="no UTF-8"),
    ],
)
def test_what_is_wrong_is_told_as_in_one_piece(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    body = msgspec.json.encode(CHAT)[:-1] + b',"logit_bias":' + text + b"}"
    with pytest.raises(ServingError) as found:
        decoded(body)
    monkeypatch.setattr(long_biases, "LONG_BYTES", len(body))
    with pytest.raises(ServingError) as expected:
        decoded(body)
    assert found.value.message == expected.value.message


def test_body_that_has_no_use_for_it_ignores_it_as_ever() -> None:
    body = msgspec.json.encode({"prompt": "x", "logit_bias": LONG})
    assert decode_body(body, msgspec.json.Decoder(TokenizeRequest)).prompt == "x"
