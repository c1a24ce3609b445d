"""Earlier answers sent back, over HTTP: whatever they contained, the conversation goes on, and the prompt shows it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server.generation.tools import MAX_DEPTH, MAX_NODES, calls_for_template
from server.settings.config import Limits, ServerConfig
from server.wire.chat import CalledFunction, EarlierCall, Message
from tests.server.conftest import (
    SCRIPT,
    TEMPLATE,
    Served,
    TinyStudent,
    make_engine,
    make_manifest,
    make_tokenizer,
    open_scripted,
    run_server,
)

USER = {"role": "user", "content": "hi"}
WRITES_TOOLS = (
    "{% for message in messages %}[{{ message.role }}]{{ message.reasoning_content }}{{ message.content }}"
    "{% if tools %}{% endif %}{% for call in message.tool_calls or [] %}<tool_call>"
    "{% for name, value in call.function.arguments.items() %}{{ name }}={{ value }};{% endfor %}{% endfor %}"
    "{% endfor %}"
)
"""As some families have it: the template goes through the arguments, and shows what was thought."""


def prompt_of(served: Served) -> str:
    return make_tokenizer().decode(list(served.engine.submitted[-1].prompt_token_ids), skip_special=False)


def ask(served: Served, *messages: dict[str, Any], **fields: Any) -> str:
    """The prompt that a conversation becomes."""
    body = {"model": "auto", "messages": [USER, *messages], "max_tokens": 1, "fenhe": {"cache": False}, **fields}
    response = served.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    return prompt_of(served)


def turns(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"a": "b', '{"a": "b'),
        ('{"a":1}', '{"a": 1}'),
        ("", "{}"),
        ("null", "null"),
        ("[1, 2]", "[1, 2]"),
        ("NaN", "NaN"),
        ("ask(it)", "ask(it)"),
        (r'{"a": "\ud83d"}', r'{"a": "\ud83d"}'),
        (r'{"a": {"\uDE00": 1}}', r'{"a": {"\uDE00": 1}}'),
        (r'{"a": "\ud83d\ude00"}', '{"a": "\N{GRINNING FACE}"}'),
        (r'{"a": "\\ud83d"}', r'{"a": "\\ud83d"}'),
    ],
    ids=lambda text: text[:10],
)
def test_arguments_of_any_text_are_in_the_prompt(served: Served, arguments: str, shown: str) -> None:
    assert f'{{"name": "f", "arguments": {shown}}}\n</tool_call>' in ask(served, *turns(arguments))


def test_arguments_that_would_take_long_to_read_are_text() -> None:
    calls = [EarlierCall(id="c", type="function", function=CalledFunction(name="f", arguments="[" * (MAX_NODES + 1)))]
    (call,) = calls_for_template(Message(role="assistant", tool_calls=calls))
    assert call["function"]["arguments"] == "[" * (MAX_NODES + 1)


def deep(levels: int) -> str:
    return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def tokenized(served: Served, *messages: dict[str, Any]) -> str:
    """The prompt, which may be longer than the context."""
    response = served.post("/tokenize", {"messages": [USER, *messages]})
    assert response.status_code == 200, response.text
    return make_tokenizer().decode(response.json()["tokens"], skip_special=False)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 500, 600, 990, 1500, 100_000])
def test_arguments_that_are_nested_deeply_are_text(served: Served, levels: int) -> None:
    assert f'"arguments": {deep(levels)}}}\n</tool_call>' in tokenized(served, *turns(deep(levels)))


def test_arguments_that_are_nested_less_deeply_are_an_object(served: Served) -> None:
    shown = json.dumps(json.loads(deep(MAX_DEPTH)))
    assert f'"arguments": {shown}}}\n</tool_call>' in ask(served, *turns(deep(MAX_DEPTH)))


@pytest.mark.parametrize("levels", [600, 1500])
def test_deep_arguments_end_no_conversation(served: Served, levels: int) -> None:
    """They are too long for the context of this student, which is another matter."""
    messages = [USER, *turns(deep(levels)), USER]
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": deep(levels)}
    given = [USER, call, {"type": "function_call_output", "call_id": "c1", "output": "3"}]
    for path in ("/v1/chat/completions", "/v1/route", "/v1/responses"):
        body = {"input": given} if path == "/v1/responses" else {"messages": messages}
        response = served.post(path, {"model": "auto", **body})
        assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("half", [r"\ud83d", r"\uDE00", r"\ude00\ud83d"])
def test_half_a_character_in_arguments_ends_no_conversation(served: Served, writing: Served, half: str) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": f'{{"a": "{half}"}}'}
    given = [USER, call, {"type": "function_call_output", "call_id": "c1", "output": "3"}]
    body = {"model": "auto", "input": given, "max_output_tokens": 16}
    assert served.post("/v1/responses", body).status_code == 200
    assert f'<tool_call>arguments={{"a": "{half}"}};' in ask(writing, *turns(f'{{"a": "{half}"}}'))


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that takes bodies of any depth."""
    student = TinyStudent(
        folder=tmp_path_factory.mktemp("s"), manifest=make_manifest(), tokenizer=make_tokenizer(TEMPLATE)
    )
    config = ServerConfig(limits=Limits(max_json_depth=100_000))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as running:
        yield running


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": ...}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": ...}}]}
DEEP_FIELDS: list[dict[str, Any]] = [
    {"chat_template_kwargs": {"x": ...}},
    {"tools": [TOOL]},
    {"messages": [USER, CALLING, USER]},
    {"metadata": ..., "unheard_of": None},
]


@pytest.mark.parametrize("fields", DEEP_FIELDS, ids=lambda fields: next(iter(fields)))
@pytest.mark.parametrize("levels", [300, 480, 600, 900, 1500])
def test_fields_that_are_nested_deeply_are_no_fault_of_the_server(
    lenient: Served, fields: dict[str, Any], levels: int
) -> None:
    """Where the settings let such bodies in."""
    text = json.dumps({"messages": [USER], **fields}, default=lambda _: "DEEP").replace('"DEEP"', deep(levels))
    response = lenient.http.post("/tokenize", content=text, headers={"content-type": "application/json"})
    assert response.status_code == 200 or (response.status_code == 400 and "nested too deeply" in response.text)


@pytest.mark.parametrize("levels", [300, 480, 600, 900, 1500])
def test_deep_input_of_a_block_is_no_fault_of_the_server(lenient: Served, levels: int) -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": ...}
    said = {"model": "auto", "messages": [USER, {"role": "assistant", "content": [call]}, USER]}
    text = json.dumps(said, default=lambda _: "DEEP").replace('"DEEP"', deep(levels))
    response = lenient.http.post(
        "/v1/messages/count_tokens", content=text, headers={"content-type": "application/json"}
    )
    assert response.status_code == 200 or (response.status_code == 400 and "nested too deeply" in response.text)


def test_field_that_is_nested_too_deeply_is_named(lenient: Served) -> None:
    for field, value in [("chat_template_kwargs", {"x": json.loads(deep(600))}), ("tools", [TOOL])]:
        text = json.dumps({"messages": [USER], field: value}, default=lambda _: json.loads(deep(600)))
        response = lenient.http.post("/tokenize", content=text, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, field)


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A student whose template writes tools and calls itself."""
    folder = tmp_path_factory.mktemp("s")
    student = TinyStudent(folder=folder, manifest=make_manifest(), tokenizer=make_tokenizer(WRITES_TOOLS))
    with run_server([open_scripted(student, make_engine(SCRIPT))], ServerConfig()) as running:
        yield running


def test_template_that_goes_through_arguments_takes_any_text(writing: Served) -> None:
    assert "<tool_call>a=1;" in ask(writing, *turns('{"a": 1}'))
    assert '<tool_call>arguments={"a": "b;' in ask(writing, *turns('{"a": "b'))


def test_template_that_shows_thoughts_gets_them(writing: Served) -> None:
    said = {"role": "assistant", "content": "four"}
    assert "[assistant]becausefour" in ask(writing, {**said, "reasoning_content": "because"}, USER)
    assert "[assistant]becausefour" in ask(writing, {**said, "reasoning": "because"}, USER)


def test_result_without_content_or_of_a_call_without_an_id_is_taken(served: Served) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    prompt = ask(served, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": None})
    assert "<tool_response>\n\n</tool_response>" in prompt


def test_legacy_call_is_shown_as_a_call(served: Served) -> None:
    answer = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1'}}
    prompt = ask(served, answer, {"role": "function", "name": "f", "content": "3"})
    assert '{"name": "f", "arguments": {"a": 1}\n</tool_call>' in prompt
    assert "<tool_response>\n3\n</tool_response>" in prompt


def test_official_client_s_own_messages_can_be_sent_back(served: Served) -> None:
    answer = served.client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hi"}])
    message = answer.choices[0].message.model_dump() | {"parsed": None}
    assert f"<|im_start|>assistant\n{answer.choices[0].message.content}<|im_end|>" in ask(served, message, USER)


@pytest.mark.parametrize("path", ["/v1/route", "/tokenize"])
def test_other_endpoints_take_the_same_conversations(served: Served, path: str) -> None:
    messages = [USER, *turns('{"a": "b'), {"role": "assistant", "content": "x", "parsed": {"a": 1}}, USER]
    assert served.post(path, {"messages": messages}).status_code == 200
