"""Bodies to structs, and the tables of fields."""

import difflib
import json
from typing import Any

import msgspec
import pytest

from models.errors import BadRequest, InvalidParameter, UnsupportedField
from server.wire.base import SamplingBody
from server.wire.chat import ChatRequest, chat_decoder
from server.wire.completions import CompletionRequest, completion_decoder
from server.wire.decode import decode_body
from server.wire.ignored import HARMLESS, Ignored
from server.wire.refused import ELSEWHERE, UNSUPPORTED
from server.wire.status import route_decoder
from server.wire.tokens import DetokenizeRequest, TokenizeRequest, detokenize_decoder, tokenize_decoder

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


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_decode_refuses_what_only_other_endpoints_have(name: str) -> None:
    def detokenize(**fields: object) -> DetokenizeRequest:
        return decode_body(json.dumps({"tokens": [1]} | fields).encode(), detokenize_decoder)

    with pytest.raises(UnsupportedField) as caught:
        detokenize(**{name: {"anything": 1}})
    assert caught.value.param == name
    for empty in (None, *ELSEWHERE[name]):
        assert detokenize(**{name: empty}) == detokenize()


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "stream", "stop", "logprobs", "response_format", "echo"])
@pytest.mark.parametrize("decoder", [tokenize_decoder, route_decoder])
def test_decode_ignores_how_to_generate_where_nothing_is_generated(decoder: Any, name: str) -> None:
    body = json.dumps({"prompt": "x", name: {"anything": 1}}).encode()
    assert decode_body(body, decoder, ignored := Ignored()) == decode_body(b'{"prompt": "x"}', decoder)
    assert ignored.places == [name]


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


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_decode_ignores_harmless_fields_and_records_them(name: str) -> None:
    body = json.dumps({"model": "m", "prompt": "x", name: {"a": 1} if name == "metadata" else None}).encode()
    decode_body(body, completion_decoder, ignored := Ignored())
    assert ignored.labels <= {name}
    values: list[object] = [{"a": [1, None]}, "low", True, 3]
    for value in values:
        body = json.dumps({"prompt": "x", name: value}).encode()
        if name not in TokenizeRequest.__struct_fields__:
            decode_body(body, tokenize_decoder, ignored := Ignored())
            assert (ignored.places, ignored.labels) == ([name], {name})


CHAT_OPTIONS: list[dict[str, object]] = [
    {"reasoning_effort": "low"},
    {"reasoning_effort": {"effort": "low", "summary": "auto"}},
    {"verbosity": "high"},
    {"store": True},
    {"metadata": {"a": 1, "b": {"c": None}}},
    {"service_tier": "flex"},
    {"prompt_cache_retention": "24h"},
    {"prediction": {"type": "content", "content": "x"}},
    {"keep_alive": "5m"},
    {"reasoning": {"effort": "low"}},
    {"thinking": {"type": "disabled"}},
    {"provider": {"sort": "price"}},
]


@pytest.mark.parametrize("option", CHAT_OPTIONS, ids=str)
def test_chat_ignores_hints_and_records_them(option: dict[str, object]) -> None:
    body = json.dumps(BODY | option).encode()
    decoded = decode_body(body, chat_decoder, ignored := Ignored())
    assert decoded.messages == decode().messages
    assert ignored.places == list(option)


def test_nothing_is_recorded_of_what_is_used() -> None:
    decode_body(json.dumps(BODY | {"seed": 1, "n": 1}).encode(), chat_decoder, ignored := Ignored())
    assert not ignored


def test_unknown_field_is_ignored_where_it_is_null_and_refused_otherwise() -> None:
    decode_body(json.dumps(BODY | {"brand_new": None}).encode(), chat_decoder, ignored := Ignored())
    assert (ignored.places, ignored.labels) == (["brand_new"], {"other"})
    values: list[object] = [False, 0, "", [], {}]
    for value in values:
        with pytest.raises(UnsupportedField) as caught:
            decode(brand_new=value)
        assert caught.value.param == "brand_new"


@pytest.mark.parametrize(("options", "name"), [("stream_options", "include_usag"), ("fenhe", "tasks")])
def test_options_ignore_null_alone(options: str, name: str) -> None:
    assert decode(**{options: {name: None}}) == decode(**{options: {}})
    with pytest.raises(UnsupportedField) as caught:
        decode(**{options: {name: True}})
    assert caught.value.param == f"{options}.{name}"


def test_tools_ignore_what_they_do_not_know() -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    plain = decode(tools=[{"type": "function", "function": function}])
    labelled = {"type": "function", "function": {**function, "returns": {}, "x": None}, "cache_control": {"type": "e"}}
    decoded = decode_body(json.dumps(BODY | {"tools": [labelled]}).encode(), chat_decoder, ignored := Ignored())
    assert decoded == plain
    assert sorted(ignored.places) == ["tools[0].cache_control", "tools[0].function.returns", "tools[0].function.x"]
    assert ignored.labels == {"cache_control", "other"}


def test_tables_do_not_refuse_what_is_supported() -> None:
    for kind in (ChatRequest, CompletionRequest, SamplingBody):
        assert not set(UNSUPPORTED) & {field.name for field in msgspec.structs.fields(kind)}
