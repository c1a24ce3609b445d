"""Bodies to structs, and the tables of fields."""

import difflib
import json

import msgspec
import pytest

from models.errors import BadRequest, InvalidParameter, UnsupportedField
from server.wire.base import SamplingBody
from server.wire.chat import ChatRequest, chat_decoder
from server.wire.completions import CompletionRequest, completion_decoder
from server.wire.decode import CHAT_ONLY, HARMLESS, UNSUPPORTED, decode_body

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def decode(**fields: object) -> ChatRequest:
    return decode_body(json.dumps(BODY | fields).encode(), chat_decoder)


def test_decode_reads_what_is_known() -> None:
    assert decode(temperature=1, stop=["a"]).temperature == 1.0


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_decode_refuses_each_unsupported_field_and_accepts_its_null(name: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        decode(**{name: {"anything": 1}})
    assert caught.value.param == name
    assert decode(**{name: None}) == decode()
    for empty in UNSUPPORTED[name]:
        assert decode(**{name: empty}) == decode()


@pytest.mark.parametrize("name", sorted(CHAT_ONLY))
def test_decode_refuses_what_only_chat_has_without_messages(name: str) -> None:
    def complete(**fields: object) -> CompletionRequest:
        return decode_body(json.dumps({"model": "m", "prompt": "x"} | fields).encode(), completion_decoder)

    with pytest.raises(UnsupportedField) as caught:
        complete(**{name: {"anything": 1}})
    assert caught.value.param == name
    for empty in (None, *CHAT_ONLY[name]):
        assert complete(**{name: empty}) == complete()


def test_decode_takes_true_for_no_number() -> None:
    with pytest.raises(UnsupportedField):
        decode(best_of=True)


def test_decode_suggests_the_near_field() -> None:
    with pytest.raises(UnsupportedField, match="did you mean `max_tokens`"):
        decode(max_token=1)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {LONG: 1},
        {f"new\nline {LONG}": 1},
        {" - at `" * 20_000: 1},
        {"fenhe": {LONG: 1}},
        {"messages": [{"role": LONG, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": LONG}]}]},
        {"response_format": {"type": LONG}},
        {"tool_choice": {"type": LONG}},
    ],
)
def test_decode_says_little_of_what_is_long(fields: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difflib, "get_close_matches", lambda *_, **__: pytest.fail("compared a name that is no field"))
    with pytest.raises(BadRequest) as caught:
        decode(**fields)
    assert len(caught.value.message) <= 1000
    assert caught.value.param
    assert len(caught.value.param) <= 200


def test_decode_keeps_the_place_of_what_is_long() -> None:
    with pytest.raises(InvalidParameter) as caught:
        decode(messages=[{"role": LONG, "content": "x"}])
    assert caught.value.param == "messages[0].role"
    with pytest.raises(InvalidParameter, match="none of text, json_object, json_schema"):
        decode(response_format={"type": LONG})


def test_decode_knows_a_name_of_two_lines_for_unknown() -> None:
    with pytest.raises(UnsupportedField) as caught:
        decode(**{"two\nlines": 1})
    assert caught.value.param == "two\nlines"


def test_decode_names_the_place_inside() -> None:
    with pytest.raises(InvalidParameter) as caught:
        decode(messages=[BODY["messages"][0], {"role": "user", "content": 5}])
    assert caught.value.param == "messages[1].content"


@pytest.mark.parametrize("body", [b"null", b"3", b'"x"', b"[]", b"{", b"", b'{"a":' * 50_000])
def test_decode_refuses_what_is_no_object(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_body(body, chat_decoder)


def test_harmless_fields_are_known_and_not_refused() -> None:
    fields = set(ChatRequest.__struct_fields__)
    assert set(HARMLESS) <= fields
    assert not set(HARMLESS) & set(UNSUPPORTED)


def test_tables_do_not_refuse_what_is_supported() -> None:
    for kind in (ChatRequest, CompletionRequest, SamplingBody):
        assert not set(UNSUPPORTED) & {field.name for field in msgspec.structs.fields(kind)}
