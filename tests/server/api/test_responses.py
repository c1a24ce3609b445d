"""`/v1/responses` as the official client sees it; its models check every answer strictly."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engines.scripted import Line, ScriptedEngine
from models.errors import StepFailed
from server.settings.config import ServerConfig
from server.students.open_student import Opened
from tests.server.conftest import Served, Start, run_server
from tests.server.random_engine import long_student

LOGPROBS = ["message.output_text.logprobs"]
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "name": "get_time", "description": "The time in a city", "parameters": CITY}
CALL_ITEM = {"type": "function_call", "call_id": "call_1", "name": "get_time", "arguments": '{"city": "Oslo"}'}


def output_item(output: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": "call_1", "output": output}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}


@pytest.fixture(scope="module")
def calling() -> Iterator[Served]:
    """A server whose student calls tools."""
    student = long_student()
    engine = ScriptedEngine(
        student="random",
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: student.tokenizer.decode(list(ids), skip_special=False),
        script={
            "one call": Line(pieces=tuple(CALL)),
            "two calls": Line(pieces=("I look. ", CALL, "\n", CALL)),
            "no call": Line(pieces=("No ", "call.")),
            "mute": Line(pieces=()),
        },
    )
    with run_server([Opened(name="random", student=student, engine=engine)], ServerConfig()) as running:
        yield running


def create(served: Served, given: Any = "hello", **fields: Any) -> Any:
    return served.client.responses.create(model=fields.pop("model", "auto"), input=given, **fields)


def post(served: Served, **fields: Any) -> Any:
    return served.post("/v1/responses", {"model": "auto", "input": "hello", **fields})


def typed_events(raw: bytes) -> list[tuple[str, Any]]:
    """Name and JSON of every event. Fails on framing that is not exact."""
    assert raw.endswith(b"\n\n")
    found = []
    for block in raw[:-2].split(b"\n\n"):
        first, second = block.split(b"\n")
        assert first.startswith(b"event: ")
        assert second.startswith(b"data: ")
        found.append((first.removeprefix(b"event: ").decode(), json.loads(second.removeprefix(b"data: "))))
    return found


def test_response_answers_official_client(served: Served) -> None:
    answer = create(served)
    assert answer.output_text == "Hello, world!"
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert answer.id.startswith("resp_")
    assert answer.output[0].id.startswith("msg_")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len("user\nhello\nassistant\n") + 3, 4)
    assert answer.usage.total_tokens == answer.usage.input_tokens + 4


def test_response_repeats_what_was_asked_and_that_nothing_is_stored(served: Served) -> None:
    body = post(served, instructions="Be brief.", max_output_tokens=9, temperature=0.5, metadata={"a": "b"}).json()
    told = {name: body[name] for name in ("instructions", "max_output_tokens", "temperature", "metadata", "store")}
    assert told == {
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "temperature": 0.5,
        "metadata": {"a": "b"},
        "store": False,
    }
    sampling = served.engine.submitted[-1].sampling
    assert (sampling.max_tokens, sampling.temperature) == (9, 0.5)


def prompt_of(served: Served, *args: Any, **fields: Any) -> str:
    create(served, *args, **fields)
    tokenizer = served.context.students[0].tokenizer
    return tokenizer.decode(served.engine.submitted[-1].prompt_token_ids, skip_special=False)


def test_response_input_becomes_messages(served: Served) -> None:
    earlier = create(served, "hello").output[0]
    prompt = prompt_of(
        served,
        [
            {"role": "developer", "content": "one"},
            {"role": "user", "content": [{"type": "input_text", "text": "two"}]},
            earlier.model_dump(exclude_none=True),
            {"type": "message", "role": "user", "content": "three"},
        ],
        instructions="zero",
    )
    roles = [("system", "zero"), ("system", "one"), ("user", "two"), ("assistant", "Hello, world!"), ("user", "three")]
    assert prompt == "".join(f"<|im_start|>{r}\n{t}<|im_end|>\n" for r, t in roles) + "<|im_start|>assistant\n"


def test_response_cut_by_max_output_tokens_is_incomplete(served: Served) -> None:
    answer = create(served, "long", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    assert answer.output_text == "w0 w1 w2 "


def test_response_stream_has_the_events_of_the_specification_in_order(served: Served) -> None:
    response = post(served, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = typed_events(response.content)
    names = [name for name, _ in events]
    deltas = [event["delta"] for name, event in events if name == "response.output_text.delta"]
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["type"] for _, event in events] == names
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    assert "".join(deltas) == "Hello, world!"
    assert events[0][1]["response"]["output"] == []
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == "Hello, world!"


def test_response_stream_reads_in_the_official_client(served: Served) -> None:
    with served.client.responses.stream(model="auto", input="long") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == "".join(f"w{i} " for i in range(50))
    assert final.usage is not None
    assert final.usage.output_tokens == 50


def test_response_stream_that_is_cut_ends_incomplete(served: Served) -> None:
    events = list(create(served, "long", max_output_tokens=2, stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("is_stream", [False, True])
def test_response_logprobs_come_when_included(served: Served, is_stream: bool) -> None:
    answer = create(served, include=LOGPROBS, top_logprobs=2, stream=is_stream)
    if is_stream:
        events = list(answer)
        answer = events[-1].response
        deltas = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
        assert [one.token for one in deltas] == ["Hello", ",", " world", "!"]
    logprobs = answer.output[0].content[0].logprobs
    assert [one.token for one in logprobs] == ["Hello", ",", " world", "!"]
    assert [len(one.top_logprobs) for one in logprobs] == [2] * 4


def test_response_stream_that_breaks_ends_failed(start: Start) -> None:
    served = start({"kaput": Line(pieces=("one ", "two"), delay_s=0.02, error=StepFailed("a forward pass failed"))})
    events = typed_events(post(served, input="kaput", stream=True).content)
    name, last = events[-1]
    assert name == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "a forward pass failed"}
    assert last["sequence_number"] == len(events) - 1


def test_response_that_fails_before_its_stream_has_its_status(start: Start) -> None:
    served = start({"kaput": Line(pieces=(), error=StepFailed("a forward pass failed"))})
    response = post(served, input="kaput", stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "step_failed")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "some"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"name": "x"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "web_search"}, TOOL, TOOL]}, "tools[2].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": allowed("required", "nobody")}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["message.output_text.logprob"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "hologram"}]}, "input[0].type"),
        ({"input": [CALL_ITEM, output_item([{"type": "input_image", "image_url": "x"}])]}, "input[1].output[0].type"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": "x" * 600}, "input"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_response_refuses_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    response = post(served, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False},
        {
            "previous_response_id": None,
            "background": False,
            "truncation": "disabled",
            "tools": [],
            "tool_choice": "auto",
        },
        {"text": {"format": {"type": "text"}}, "parallel_tool_calls": True, "include": [], "reasoning": None},
        {"store": True},
        {"truncation": "auto", "max_tool_calls": 3},
        {"reasoning": {"effort": "high", "summary": "auto"}, "text": {"verbosity": "low"}},
        {"include": ["reasoning.encrypted_content", "web_search_call.action.sources"]},
        {"client_metadata": {"x": "y"}, "service_tier": "flex", "prompt_cache_key": "k", "safety_identifier": "s"},
        {"stream_options": {"include_obfuscation": True}, "stream": True},
        {"metadata": {"a": 1}, "surprise": None},
        {"tools": [{"type": "web_search"}], "tool_choice": "auto"},
        {"tools": [{"type": "namespace", "name": "a b c", "tools": [{"type": "function", "name": "x"}]}]},
        {"tools": [{"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}]},
        {"tools": [{"type": "mcp", "server_label": "x"}], "tool_choice": allowed("auto", "nobody")},
    ],
)
def test_response_accepts_what_cannot_change_it(served: Served, fields: dict[str, Any]) -> None:
    response = post(served, **fields)
    assert response.is_success, response.text


def test_response_says_that_nothing_was_stored(served: Served) -> None:
    answer = create(served, store=True, truncation="auto", include=["reasoning.encrypted_content"])
    assert (answer.store, answer.truncation) == (False, "disabled")


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("given", "text", "num"), [("one call", None, 1), ("two calls", "I look.", 2)])
def test_calls_come_as_items(calling: Served, given: str, text: str | None, num: int, is_stream: bool) -> None:
    if is_stream:
        with calling.client.responses.stream(model="auto", input=given, tools=[TOOL]) as stream:
            answer: Any = stream.get_final_response()
    else:
        answer = create(calling, given, tools=[TOOL])
    calls = [item for item in answer.output if item.type == "function_call"]
    told = [(call.name, json.loads(call.arguments), call.status) for call in calls]
    assert told == [("get_time", {"city": "Oslo"}, "completed")] * num
    assert len({call.call_id for call in calls}) == num
    assert answer.output_text == (text or "")
    assert len(answer.output) == num + (text is not None)
    assert (answer.status, answer.tools[0].name, answer.tool_choice) == ("completed", "get_time", "auto")


def test_stream_of_calls_has_the_events_of_the_specification_in_order(calling: Served) -> None:
    events = [event for _, event in typed_events(post(calling, input="two calls", tools=[TOOL], stream=True).content)]
    names = [event["type"].removeprefix("response.") for event in events]
    call = ["output_item.added", "function_call_arguments.done", "output_item.done"]
    message = ["output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done"]
    told = [name for name in names if not name.endswith("delta")]
    assert told == ["created", "in_progress", *message, *call, *call, "completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for index in (1, 2):
        mine = [event for event in events if event.get("output_index") == index]
        opened, *deltas, arguments, closed = mine
        assert (opened["item"]["arguments"], opened["item"]["status"]) == ("", "in_progress")
        assert {event["item_id"] for event in (*deltas, arguments)} == {opened["item"]["id"]}
        assert "".join(event["delta"] for event in deltas) == arguments["arguments"] == closed["item"]["arguments"]
        assert (arguments["name"], closed["item"]["call_id"]) == ("get_time", opened["item"]["call_id"])
    assert events[-1]["response"]["output"] == [
        event["item"] for event in events if event["type"].endswith("item.done")
    ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_call_that_is_cut_off_is_incomplete(calling: Served, is_stream: bool) -> None:
    fields: Any = {"model": "auto", "input": "one call", "tools": [TOOL], "max_output_tokens": 60}
    if is_stream:
        *_, last = calling.client.responses.create(**fields, stream=True)
        assert last.type == "response.incomplete"
        answer = last.response
    else:
        answer = calling.client.responses.create(**fields)
    assert (answer.status, answer.output[0].status) == ("incomplete", "incomplete")
    assert answer.output[0].arguments.startswith('{"c')


def test_answer_of_nothing_is_an_empty_message(calling: Served) -> None:
    answer = create(calling, "mute", tools=[TOOL])
    assert [(item.type, item.content[0].text) for item in answer.output] == [("message", "")]


def test_logprobs_beside_calls_are_those_of_the_text(calling: Served) -> None:
    answer = create(calling, "two calls", tools=[TOOL], include=LOGPROBS)
    message, *calls = answer.output
    assert len(calls) == 2
    assert message.content[0].logprobs is not None


def test_answer_that_is_begun_is_continued(served: Served) -> None:
    begun = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "The best is ("}]
    assert prompt_of(served, begun).endswith("<|im_start|>assistant\nThe best is (")


def test_calls_and_results_can_be_sent_back_as_they_came(calling: Served) -> None:
    first = create(calling, "two calls", tools=[TOOL])
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "noon"}
        for item in first.output
        if item.type == "function_call"
    ]
    history = [{"role": "user", "content": "no call"}, *first.output, *results]
    assert create(calling, history, tools=[TOOL]).output_text == "No call."


CALLED = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'
RESULT = "<tool_response>\nnoon\n</tool_response>"


@pytest.mark.parametrize(
    ("items", "turns"),
    [
        ([CALL_ITEM, output_item("noon")], [("assistant", CALLED), ("user", RESULT)]),
        (
            [CALL_ITEM | {"id": "fc_1", "status": "completed"}, output_item([{"type": "input_text", "text": "noon"}])],
            [("assistant", CALLED), ("user", RESULT)],
        ),
        (
            [
                {"role": "assistant", "content": "I look."},
                CALL_ITEM,
                CALL_ITEM | {"call_id": "c2"},
                output_item("noon"),
            ],
            [("assistant", f"I look.\n{CALLED}\n{CALLED}"), ("user", RESULT)],
        ),
        (
            [
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
                CALL_ITEM,
                output_item("noon"),
            ],
            [("assistant", CALLED), ("user", RESULT)],
        ),
        (
            [
                {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}, {"type": "hologram"}]},
                {"role": "user", "content": "why"},
            ],
            [("assistant", "No."), ("user", "why")],
        ),
        (
            [CALL_ITEM | {"arguments": '{"city": "Os'}, output_item("noon")],
            [("assistant", '{"city": "Os'), ("user", RESULT)],
        ),
        (
            [
                {"type": "custom_tool_call", "call_id": "call_1", "name": "patch", "input": "*** Begin"},
                {"type": "custom_tool_call_output", "call_id": "call_1", "output": "noon"},
            ],
            [("assistant", "*** Begin"), ("user", RESULT)],
        ),
        (
            [
                {"type": "shell_call", "call_id": "call_1", "action": {"commands": ["ls"]}, "status": "completed"},
                {"type": "shell_call_output", "call_id": "call_1", "output": [{"stdout": "noon"}]},
            ],
            [("assistant", '"commands": ["ls"]'), ("user", '[{"stdout": "noon"}]')],
        ),
    ],
)
def test_history_becomes_a_prompt(served: Served, items: list[Any], turns: list[tuple[str, str]]) -> None:
    prompt = prompt_of(served, items)
    found = [turn.split("\n", 1) for turn in prompt.split("<|im_start|>")[1:-1]]
    assert [role for role, _ in found] == [role for role, _ in turns]
    for (_, text), (_, part) in zip(found, turns, strict=True):
        assert part in text


@pytest.mark.parametrize("kind", ["web_search", "namespace", "custom", "mcp", "local_shell", "x" * 500])
@pytest.mark.parametrize("is_stream", [False, True])
def test_tools_that_are_not_here_are_left_out_and_named(calling: Served, kind: str, is_stream: bool) -> None:
    response = post(calling, input="no call", tools=[{"type": kind}, TOOL], stream=is_stream)
    body = typed_events(response.content)[-1][1]["response"] if is_stream else response.json()
    assert body["fenhe"]["left_out"] == [f"tools[0]: {kind[:64]}"]
    assert [tool["name"] for tool in body["tools"]] == ["get_time"]
    assert "left_out" not in post(calling, input="no call", tools=[TOOL]).json()["fenhe"]


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        ("auto", ["get_time", "other"]),
        ("required", ["get_time", "other"]),
        ({"type": "function", "name": "other"}, ["get_time", "other"]),
        (allowed("required", "other"), ["other"]),
        (allowed("auto", "other", "nobody"), ["other"]),
        (allowed("auto", "nobody"), []),
        ("none", []),
    ],
)
def test_tool_choice_decides_what_is_offered(calling: Served, choice: Any, offered: list[str]) -> None:
    response = post(calling, input="no call", tools=[TOOL, TOOL | {"name": "other"}], tool_choice=choice)
    assert response.status_code == 200, response.text
    request = calling.engine.submitted[-1]
    prompt = calling.student.tokenizer.decode(request.prompt_token_ids, skip_special=False)
    assert [name for name in ("get_time", "other") if f'"name": "{name}"' in prompt] == offered
    assert (request.sampling.grammar is not None) == bool(offered)
    assert response.json()["tool_choice"] == choice


@pytest.mark.parametrize("is_stream", [False, True])
def test_loosened_schema_is_told(calling: Served, is_stream: bool) -> None:
    unheld = TOOL | {"parameters": {"type": "object", "properties": {"a": {"not": {"type": "integer"}}}}}
    response = post(calling, input="no call", tools=[{"type": "web_search"}, unheld], stream=is_stream)
    told = response.headers.get("x-fenhe-loosened")
    assert (response.status_code, told) == (200, "/tools/1/parameters/properties/a/not")
    refused = post(calling, input="no call", tools=[unheld | {"strict": True}])
    assert refused.json()["error"]["param"].startswith("tools[0].parameters")


def test_response_is_routed_as_a_chat_is(served: Served) -> None:
    response = post(served, input="math please")
    assert (response.headers["x-fenhe-task"], response.headers["x-fenhe-path"]) == ("math", "shallow")
    assert response.json()["fenhe"] == {"path": "shallow"}


def test_response_unknown_model_is_named(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        create(served, model="nobody")
    assert caught.value.param == "model"


def test_stored_responses_are_not_there(served: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        served.client.responses.retrieve("resp_1")


def test_embeddings_are_refused_with_the_reason(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="no embeddings") as caught:
        served.client.embeddings.create(model="auto", input="hello")
    assert caught.value.code == "not_found"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def schema_format(**fields: Any) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, **fields}}


@pytest.mark.parametrize("text", [schema_format(), {"format": {"type": "json_object"}}])
def test_response_format_becomes_a_grammar(served: Served, text: dict[str, Any]) -> None:
    body = post(served, text=text).json()
    assert served.engine.submitted[-1].sampling.grammar is not None
    assert body["text"] == text


def test_response_without_format_has_no_grammar(served: Served) -> None:
    create(served, text={"format": {"type": "text"}})
    assert served.engine.submitted[-1].sampling.grammar is None


@pytest.mark.parametrize(
    ("text", "param"),
    [
        (schema_format(name=None), "text.format.name"),
        (schema_format(schema=None), "text.format.schema"),
        (schema_format(schema={"type": "nonsense"}), "text.format.schema"),
        ({"format": {"type": "json_object", "name": "x"}}, "text.format"),
        ({"format": {"type": "xml"}}, "text.format.type"),
    ],
)
def test_response_refuses_a_bad_format_by_name(served: Served, text: dict[str, Any], param: str) -> None:
    error = post(served, text=text).json()["error"]
    assert error["param"].startswith(param), error
    assert "response_format" not in error["message"]
