"""Tools from the request to the calls in the answer, and back into the next prompt."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionChunk

from engines.scripted import Line, ScriptedEngine
from server.settings.config import ServerConfig
from server.students.open_student import Opened
from tests.server.conftest import TEMPLATE, Served, make_tokenizer, run_server
from tests.server.random_engine import long_student, open_random


class _Weather(pydantic.BaseModel):
    city: str
    days: int


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Xi'an", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get-time"}}
TOOLS = [WEATHER, CLOCK]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'
CLOCK_CALL = '<tool_call>\n{"name": "get-time", "arguments": {}}\n</tool_call>'
SCRIPT = {
    "one call": Line(pieces=tuple(CALL)),
    "two calls": Line(pieces=("Let me see. ", CALL[:40], CALL[40:], "\n" + CLOCK_CALL)),
    "plain": Line(pieces=("It is", " < 3 ", "o'clock")),
    "cut": Line(pieces=(CALL[:60], "x")),
}


@pytest.fixture(scope="module")
def bound() -> Iterator[Served]:
    with run_server([open_random()], ServerConfig()) as running:
        yield running


@pytest.fixture(scope="module")
def scripted() -> Iterator[Served]:
    student = long_student()
    engine = ScriptedEngine(
        student="random",
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: student.tokenizer.decode(list(ids), skip_special=False),
        script=SCRIPT,
    )
    with run_server([Opened(name="random", student=student, engine=engine)], ServerConfig()) as running:
        yield running


def ask(served: Served, prompt: str = "hello", **fields: Any) -> Any:
    fields = {"tools": TOOLS, "max_tokens": 300, **fields}
    return served.client.chat.completions.create(model="auto", messages=[{"role": "user", "content": prompt}], **fields)


def joined(chunks: list[ChatCompletionChunk]) -> tuple[str | None, list[dict[str, str]], str | None]:
    """Content, calls and end, put together from the deltas as clients do it."""
    content: str | None = None
    calls: list[dict[str, str]] = []
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
    for chunk in chunks:
        delta = chunk.choices[0].delta
        if delta.content is not None:
            content = (content or "") + delta.content
        for piece in delta.tool_calls or ():
            assert piece.function is not None
            if piece.id is not None:
                assert piece.index == len(calls)
                assert piece.type == "function"
                assert piece.function.name is not None
                assert piece.function.arguments == ""
                calls.append({"id": piece.id, "name": piece.function.name, "arguments": ""})
            else:
                assert piece.function.name is None
                calls[piece.index]["arguments"] += piece.function.arguments or ""
    assert len(reasons) == 1
    return content, calls, reasons[0]


def test_a_call_is_no_text(scripted: Served) -> None:
    choice = ask(scripted, "one call").choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    call = choice.message.tool_calls[0]
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 2}


def test_calls_are_streamed_as_the_specification_has_it(scripted: Served) -> None:
    chunks = list(ask(scripted, "one call", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    content, calls, reason = joined(chunks)
    assert (content, reason) == (None, "tool_calls")
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("get_weather", {"city": "Oslo", "days": 2})
    ]
    with_arguments = [chunk for chunk in chunks if chunk.choices[0].delta.tool_calls]
    assert len(with_arguments) >= 2, "the arguments come after the name"


@pytest.mark.parametrize("is_stream", [False, True])
def test_text_and_several_calls_are_told_apart(scripted: Served, is_stream: bool) -> None:
    answer = ask(scripted, "two calls", stream=is_stream)
    if is_stream:
        content, calls, reason = joined(list(answer))
        names = [call["name"] for call in calls]
        assert len({call["id"] for call in calls}) == 2
    else:
        message = answer.choices[0].message
        content, reason = message.content, answer.choices[0].finish_reason
        names = [call.function.name for call in message.tool_calls]
    assert (content, names, reason) == ("Let me see.", ["get_weather", "get-time"], "tool_calls")


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_without_calls_is_text(scripted: Served, is_stream: bool) -> None:
    answer = ask(scripted, "plain", stream=is_stream)
    if is_stream:
        found = joined(list(answer))
    else:
        choice = answer.choices[0]
        found = (choice.message.content, choice.message.tool_calls or [], choice.finish_reason)
    assert found == ("It is < 3 o'clock", [], "stop")


def test_choices_are_read_apart(scripted: Served) -> None:
    chunks = list(ask(scripted, "one call", n=2, stream=True))
    for index in (0, 1):
        mine = [chunk for chunk in chunks if chunk.choices[0].index == index]
        assert json.loads(joined(mine)[1][0]["arguments"])["city"] == "Oslo"


def test_kept_calls_are_told_again_as_calls(scripted: Served) -> None:
    first, again = (ask(scripted, "one call", temperature=0, seed=7) for _ in range(2))
    num_submitted = len(scripted.engine.submitted)
    chunks = list(ask(scripted, "one call", temperature=0, seed=7, stream=True))
    assert len(scripted.engine.submitted) == num_submitted, "the stream was kept too"
    assert first.id != again.id
    _, calls, reason = joined(chunks)
    (call,) = again.choices[0].message.tool_calls
    assert (reason, again.choices[0].finish_reason) == ("tool_calls", "tool_calls")
    assert [(one["name"], one["arguments"]) for one in calls] == [(call.function.name, call.function.arguments)]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_stop_string_may_cut_a_call(scripted: Served, is_stream: bool) -> None:
    answer = ask(scripted, "one call", stop=["days"], stream=is_stream)
    if is_stream:
        _, (call,), reason = joined(list(answer))
        arguments = call["arguments"]
    else:
        reason = answer.choices[0].finish_reason
        arguments = answer.choices[0].message.tool_calls[0].function.arguments
    assert (arguments, reason) == ('{"city": "Oslo", "', "stop")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_call_cut_off_is_not_to_be_carried_out(scripted: Served, is_stream: bool) -> None:
    answer = ask(scripted, "cut", max_tokens=1, stream=is_stream)
    reason = joined(list(answer))[2] if is_stream else answer.choices[0].finish_reason
    assert reason == "length"


def test_logprobs_come_with_calls(scripted: Served) -> None:
    chunks = list(ask(scripted, "one call", stream=True, logprobs=True))
    tokens = [token.token for chunk in chunks if (found := chunk.choices[0].logprobs) for token in found.content or ()]
    assert "".join(tokens) == CALL


def test_required_calls_and_their_arguments_are_legal(bound: Served) -> None:
    for seed in range(6):
        choice = ask(bound, tool_choice="required", seed=seed, parallel_tool_calls=False).choices[0]
        assert choice.message.content is None
        if choice.finish_reason != "tool_calls":  # the random model ran out of tokens among blanks
            continue
        (call,) = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        if call.function.name == "get_weather":
            assert arguments["city"] in {"Xi'an", "Oslo"}
            assert 1 <= arguments["days"] <= 7
        else:
            assert (call.function.name, arguments) == ("get-time", {})


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_named_function_is_the_one_called(bound: Served, is_stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "get-time"}}
    answer = ask(bound, tool_choice=choice, temperature=0, stream=is_stream)
    if is_stream:
        _, calls, reason = joined(list(answer))
        assert ([call["name"] for call in calls], reason) == (["get-time"], "tool_calls")
    else:
        assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["get-time"]
        assert answer.choices[0].finish_reason == "tool_calls"


def test_auto_may_answer_in_text(bound: Served) -> None:
    choice = ask(bound, tool_choice="auto", max_tokens=20, seed=1).choices[0]
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_no_choice_takes_the_tools_away(scripted: Served) -> None:
    assert ask(scripted, "plain", tool_choice="none").choices[0].message.content
    request = scripted.engine.submitted[-1]
    assert request.sampling.grammar is None
    assert "get_weather" not in prompt_of(scripted)


def test_tools_and_a_format_go_together(bound: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    choice = ask(bound, response_format=wanted, temperature=0, max_tokens=400).choices[0]
    if choice.message.tool_calls is None:
        assert json.loads(choice.message.content) == {"a": 1}
    else:
        assert choice.finish_reason == "tool_calls"


def prompt_of(served: Served) -> str:
    ids = served.engine.submitted[-1].prompt_token_ids
    return served.student.tokenizer.decode(ids, skip_special=False)


def test_a_template_without_tools_is_told_in_text(scripted: Served) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "plain"}]
    scripted.client.chat.completions.create(model="auto", messages=messages, tools=[WEATHER])  # type: ignore[list-item]
    prompt = prompt_of(scripted)
    assert prompt.startswith("<|im_start|>system\nBe kind.\n\n")
    assert prompt.count("<|im_start|>system") == 1
    assert '"name": "get_weather", "description": "Tells the weather."' in prompt
    assert '<tool_call>\n{"name": "NAME", "arguments": {...}}\n</tool_call>' in prompt


def earlier_turns() -> list[dict[str, Any]]:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Oslo","days":2}'},
    }
    other = {"id": "c2", "type": "function", "function": {"name": "get-time", "arguments": ""}}
    return [
        {"role": "user", "content": "plain"},
        {"role": "assistant", "content": "Well.", "tool_calls": [call, other]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}]},
    ]


def test_earlier_calls_and_results_are_in_the_prompt(scripted: Served) -> None:
    response = scripted.post("/v1/chat/completions", {"model": "auto", "messages": earlier_turns(), "tools": TOOLS})
    assert response.status_code == 200
    prompt = prompt_of(scripted)
    assert f"<|im_start|>assistant\nWell.\n{CALL}\n{CLOCK_CALL}<|im_end|>\n" in prompt
    results = "<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>\n" in prompt


def test_a_template_that_writes_tools_gets_them_as_they_are() -> None:
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
        "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments.city }}{% endfor %}"
        "{% endfor %}"
    )
    found = make_tokenizer(template).chat_template
    assert found is not None
    assert found.writes_tools
    plain = make_tokenizer(TEMPLATE).chat_template
    assert plain is not None
    assert not plain.writes_tools
    with run_server([open_random(template)], ServerConfig()) as running:
        body = {"model": "auto", "messages": earlier_turns(), "tools": [WEATHER], "max_tokens": 1}
        answer = running.post("/v1/chat/completions", body).json()
        text = json.dumps([WEATHER]) + "[user]plain[assistant]Well.<tool_call>Oslo<tool_call>[tool]rain[tool]noon"
        assert answer["usage"]["prompt_tokens"] == len(text)


FUNCTION = WEATHER["function"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [
                    CLOCK,
                    {
                        "type": "function",
                        "function": {
                            "name": "a",
                            "strict": True,
                            "parameters": {"type": "object", "properties": {"b": {"type": "x"}}},
                        },
                    },
                ]
            },
            "tools[1].function.parameters#/properties/b/type",
        ),
        ({"tools": [CLOCK] * 129}, "tools"),
        (
            {
                "tool_choice": {"type": "function", "function": {"name": "get-time"}},
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
    ],
)
def test_tools_are_refused_by_field(served: Served, fields: dict[str, Any], param: str) -> None:
    response = served.chat("hello", **{"tools": TOOLS, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({0: {"tool_call_id": "c1"}}, "messages[0].tool_call_id"),
        ({0: {"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": ""}}]}}, "messages[0].tool_calls"),
        ({2: {"tool_call_id": None}}, "messages[2].tool_call_id"),
        ({2: {"tool_call_id": "c9"}}, "messages[2].tool_call_id"),
    ],
)
def test_turns_that_do_not_fit_are_refused(served: Served, changed: dict[int, dict[str, Any]], param: str) -> None:
    messages = [{**message, **changed.get(index, {})} for index, message in enumerate(earlier_turns())][:3]
    response = served.post("/v1/chat/completions", {"model": "auto", "messages": messages})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_calls_are_the_same_from_a_strict_client(scripted: Served) -> None:
    with scripted.client.chat.completions.stream(
        model="auto",
        messages=[{"role": "user", "content": "one call"}],
        tools=[openai.pydantic_function_tool(_Weather, name="get_weather")],
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert isinstance(message.tool_calls[0].function.parsed_arguments, _Weather)
