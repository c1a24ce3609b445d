"""`/v1/responses` as the official client sees it; its models check every answer strictly."""

import json
from typing import Any

import openai
import pytest

from engines.scripted import Line
from models.errors import StepFailed
from tests.server.conftest import Served, Start

LOGPROBS = ["message.output_text.logprobs"]


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
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
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
    ],
)
def test_response_accepts_what_asks_for_nothing(served: Served, fields: dict[str, Any]) -> None:
    assert post(served, **fields).is_success


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
