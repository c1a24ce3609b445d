"""Conversations as real clients and other servers send them back: never refused for what an answer contained."""

import json
from typing import Any

import pytest

from models.errors import UnsupportedField
from server.wire.chat import ChatRequest, EarlierCall, Message, TextPart, chat_decoder
from server.wire.decode import decode_body
from server.wire.history import CONTENT
from server.wire.ignored import Ignored

USER = {"role": "user", "content": "hi"}


def decode(*messages: dict[str, Any]) -> tuple[ChatRequest, Ignored]:
    body = json.dumps({"model": "m", "messages": [USER, *messages]}).encode()
    return decode_body(body, chat_decoder, ignored := Ignored()), ignored


def last(*messages: dict[str, Any]) -> Message:
    return decode(*messages)[0].messages[-1]


def call_of(**fields: Any) -> EarlierCall:
    calls = last({"role": "assistant", "content": None, "tool_calls": [fields]}).tool_calls
    assert calls is not None
    return calls[0]


KEYS: list[dict[str, Any]] = [
    {"parsed": {"a": 1}},
    {"parsed": None},
    {"reasoning": None},
    {"provider_specific_fields": {}},
    {"provider_specific_fields": {"citations": [1]}},
    {"annotations": [{"type": "url_citation"}]},
    {"audio": {"id": "audio_1", "transcript": "x"}},
    {"audio": None},
    {"function_call": None},
    {"thinking_blocks": [{"type": "thinking"}]},
    {"reasoning_details": [{"text": "x"}]},
    {"reasoning_content": {"text": "x"}},
    {"images": [{"image_url": {"url": "data:"}}]},
    {"never_seen_before": {"a": [1]}},
    {"id": "msg_1", "index": 0, "stop_reason": None},
]


@pytest.mark.parametrize("keys", KEYS, ids="-".join)
def test_answer_with_other_keys_is_the_answer_without_them(keys: dict[str, Any]) -> None:
    plain = {"role": "assistant", "content": "hello"}
    decoded, ignored = decode({**plain, **keys})
    assert decoded.messages[-1] == last(plain)
    assert ignored.places == [f"messages[1].{name}" for name in keys]


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_bookkeeping_of_any_message_is_ignored(role: str) -> None:
    plain = {"role": role, "content": "hello"}
    assert last({**plain, "cache_control": {"type": "ephemeral"}, "id": 7, "createdAt": "x"}) == last(plain)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_kept_for_templates_that_show_them(name: str) -> None:
    assert last({"role": "assistant", "content": "a", name: "because"}).reasoning_content == "because"


@pytest.mark.parametrize(
    "fields",
    [
        {"index": 0},
        {"extra_content": {"google": {"thought_signature": "x"}}},
        {"type": None},
        {"type": "mcp"},
    ],
    ids=str,
)
def test_call_with_other_keys_is_the_call_without_them(fields: dict[str, Any]) -> None:
    plain = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert call_of(**plain | fields) == call_of(**plain)


def test_parsed_arguments_of_the_official_client_are_ignored() -> None:
    function = {"name": "f", "arguments": "{}", "parsed_arguments": {"a": 1}}
    _, ignored = decode({"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]})
    assert ignored.places == ["messages[1].tool_calls[0].function.parsed_arguments"]
    assert ignored.labels == {"parsed_arguments"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ('{"a": "b', '{"a": "b'),
        ("", ""),
        (None, ""),
        ("no JSON at all", "no JSON at all"),
        ({"a": "é"}, '{"a": "é"}'),
        ([1], "[1]"),
    ],
)
def test_arguments_are_any_text(given: Any, read: str) -> None:
    assert call_of(id="c", type="function", function={"name": "f", "arguments": given}).function.arguments == read


@pytest.mark.parametrize("name", ["functions.get_weather", "x" * 200, "", "with space", "多"])
def test_call_of_any_name_was_made(name: str) -> None:
    assert call_of(id="c", type="function", function={"name": name, "arguments": "{}"}).function.name == name


@pytest.mark.parametrize("id", [None, "", "x" * 500])
def test_call_may_have_no_id(id: str | None) -> None:
    assert call_of(id=id, type="function", function={"name": "f", "arguments": "{}"}).id == (id or "")
    assert call_of(function={"name": "f"}).id == ""


def test_call_of_a_custom_tool_shows_its_input() -> None:
    call = call_of(id="c", type="custom", custom={"name": "run", "input": "print(1)"})
    assert (call.function.name, call.function.arguments) == ("run", "print(1)")


def test_legacy_call_and_its_result_belong_together() -> None:
    answer, result = decode(
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{"}},
        {"role": "function", "name": "f", "content": "3"},
    )[0].messages[1:]
    assert answer.tool_calls is not None
    assert answer.tool_calls[0].function.arguments == "{"
    assert (result.role, result.tool_call_id) == ("tool", answer.tool_calls[0].id)


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ({"type": "refusal", "refusal": "no"}, ["no"]),
        ({"type": "output_text", "text": "a", "annotations": []}, ["a"]),
        ({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, ["a"]),
        ({"type": "text", "text": None}, [""]),
        ({"type": "thinking", "thinking": "hm", "signature": "x"}, []),
        ({"type": "reasoning", "summary": []}, []),
        ({"type": "image_url", "image_url": {"url": "data:"}}, []),
        ({"type": "tool_use", "id": "x"}, []),
    ],
    ids=str,
)
def test_parts_of_an_answer_are_its_words(part: dict[str, Any], read: list[str]) -> None:
    content = last({"role": "assistant", "content": [part]}).content
    assert content == [TextPart(type="text", text=text) for text in read]


@pytest.mark.parametrize("role", ["user", "system", "tool"])
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "brand_new"])
def test_what_no_student_can_read_is_refused_by_its_place(role: str, kind: str) -> None:
    part = {"type": kind, kind: {"url": "x"}}
    with pytest.raises(UnsupportedField, match=kind) as caught:
        decode({"role": role, "content": [{"type": "text", "text": "see"}, part], "tool_call_id": "c"})
    assert caught.value.param == "messages[1].content[1].type"


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_content_beside_the_content_is_refused_unless_it_is_empty(name: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        decode({**USER, name: ["data:image/png;base64,x"]})
    assert caught.value.param == f"messages[1].{name}"
    assert last({**USER, name: []}) == last(USER)
