"""What we answer, held to OpenAI's response schemas: `openai_schemas/` has them, written from the specification.

They allow no field that the specification has not, `fenhe` apart.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing

from engines.scripted import Line, ScriptedEngine
from models.errors import PathLoading, QueueFull, StepFailed
from server.settings.config import AdminConfig, KeysConfig, Limits, ServerConfig
from server.students.open_student import Opened
from tests.server.conftest import SCRIPT, Served, Start, TinyStudent, make_engine, open_scripted, run_server
from tests.server.event_reader import read_events, read_json_events
from tests.server.random_engine import long_student

SCHEMAS = {
    file.stem: json.loads(file.read_text()) for file in sorted((Path(__file__).parent / "openai_schemas").iterdir())
}
REGISTRY: Any = referencing.Registry().with_resources(
    (f"{name}.json", referencing.Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
)
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}]
FAULT = StepFailed("the forward pass failed")
LATE_FAULT = Line(pieces=("some ", "text"), delay_s=0.02, error=FAULT)


def check(name: str, body: Any) -> None:
    jsonschema.Draft202012Validator({"$ref": f"{name}.json"}, registry=REGISTRY).validate(body)


@pytest.fixture(scope="module")
def calling() -> Iterator[Served]:
    """A server whose student calls tools."""
    student = long_student()
    engine = ScriptedEngine(
        student="random",
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: student.tokenizer.decode(list(ids), skip_special=False),
        script={"one call": Line(pieces=tuple(CALL)), "two calls": Line(pieces=("I look. ", CALL, "\n", CALL))},
    )
    with run_server([Opened(name="random", student=student, engine=engine)], ServerConfig()) as running:
        yield running


CHATS: list[dict[str, Any]] = [
    {},
    {"n": 2},
    {"max_tokens": 1},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 3, "n": 2},
    {"response_format": {"type": "json_object"}},
]
COMPLETIONS: list[dict[str, Any]] = [
    {},
    {"n": 2},
    {"prompt": ["a", "b"], "n": 2},
    {"prompt": [1, 2, 3]},
    {"logprobs": 0},
    {"logprobs": 3},
    {"echo": True},
    {"echo": True, "logprobs": 2},
    {"echo": True, "logprobs": 2, "max_tokens": 0},
    {"max_tokens": 1},
]
CALLS: list[dict[str, Any]] = [{}, {"n": 2}, {"max_tokens": 3}, {"logprobs": True, "top_logprobs": 2}]
RESPONSES: list[dict[str, Any]] = [
    {},
    {"max_output_tokens": 1, "instructions": "Be brief.", "metadata": {"a": "b"}},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"text": {"format": {"type": "json_object"}}},
]


def chat_body(fields: dict[str, Any], prompt: str = "hello") -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": prompt}], **fields}


def post(served: Served, path: str, body: dict[str, Any]) -> Any:
    response = served.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(served: Served, path: str, body: dict[str, Any]) -> list[Any]:
    """The chunks of a stream that ended well."""
    response = served.post(path, body | {"stream": True})
    assert read_events(response.content)[-1].data == "[DONE]"
    return read_json_events(response.content)


def check_stream(chunks: list[Any], num_choices: int, *, includes_usage: bool) -> None:
    """What the specification says of a stream as a whole."""
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    if includes_usage:
        *chunks, last = chunks
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    assert all(chunk.get("usage", "absent") == (None if includes_usage else "absent") for chunk in chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    for index in range(num_choices):
        mine = [choice for choice in choices if choice["index"] == index]
        ends = [choice["finish_reason"] for choice in mine]
        assert ends[-1] is not None
        assert ends[:-1] == [None] * (len(ends) - 1)
        if "delta" in mine[0]:
            assert ["role" in choice["delta"] for choice in mine] == [True] + [False] * (len(mine) - 1)
    assert {choice["index"] for choice in choices} == set(range(num_choices))


@pytest.mark.parametrize("fields", CHATS)
def test_chat_completion_is_as_specified(served: Served, fields: dict[str, Any]) -> None:
    body = post(served, "/v1/chat/completions", chat_body(fields))
    check("chat_completion", body)
    assert [choice["index"] for choice in body["choices"]] == list(range(fields.get("n", 1)))
    assert all((choice["logprobs"] is not None) == ("logprobs" in fields) for choice in body["choices"])


@pytest.mark.parametrize("includes_usage", [False, True])
@pytest.mark.parametrize("fields", CHATS)
def test_chat_stream_is_as_specified(served: Served, fields: dict[str, Any], includes_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if includes_usage else {}
    chunks = stream(served, "/v1/chat/completions", chat_body(fields | options))
    for chunk in chunks:
        check("chat_chunk", chunk)
    check_stream(chunks, fields.get("n", 1), includes_usage=includes_usage)


@pytest.mark.parametrize("prompt", ["one call", "two calls"])
@pytest.mark.parametrize("fields", CALLS)
def test_tool_calls_are_as_specified(calling: Served, prompt: str, fields: dict[str, Any]) -> None:
    body = chat_body({"tools": TOOLS, "max_tokens": 300} | fields, prompt)
    whole = post(calling, "/v1/chat/completions", body)
    check("chat_completion", whole)
    chunks = stream(calling, "/v1/chat/completions", body)
    for chunk in chunks:
        check("chat_chunk", chunk)
    check_stream(chunks, fields.get("n", 1), includes_usage=False)
    reasons = {choice["finish_reason"] for choice in whole["choices"]}
    assert reasons == ({"length"} if "max_tokens" in fields else {"tool_calls"})


@pytest.mark.parametrize("fields", COMPLETIONS)
def test_completion_is_as_specified(served: Served, fields: dict[str, Any]) -> None:
    body = post(served, "/v1/completions", {"model": "auto", "prompt": "hello", **fields})
    check("completion", body)
    for choice in body["choices"]:
        check_offsets(choice)


def check_offsets(choice: dict[str, Any]) -> None:
    """`text_offset` says where in the text a token begins."""
    logprobs = choice["logprobs"]
    if logprobs is None:
        return
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"].startswith(token, offset)
    assert len(logprobs["token_logprobs"]) == len(logprobs["tokens"])


@pytest.mark.parametrize("includes_usage", [False, True])
@pytest.mark.parametrize("fields", COMPLETIONS)
def test_completion_stream_is_as_specified(served: Served, fields: dict[str, Any], includes_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if includes_usage else {}
    chunks = stream(served, "/v1/completions", {"model": "auto", "prompt": "hello", **fields, **options})
    for chunk in chunks:
        check("completion_chunk", chunk)
    num_prompts = 2 if fields.get("prompt") == ["a", "b"] else 1
    check_stream(chunks, fields.get("n", 1) * num_prompts, includes_usage=includes_usage)


@pytest.mark.parametrize("fields", RESPONSES)
def test_response_is_as_specified(served: Served, fields: dict[str, Any]) -> None:
    body = post(served, "/v1/responses", {"model": "auto", "input": "hello", **fields})
    check("response", body)
    assert body["status"] == ("incomplete" if "max_output_tokens" in fields else "completed")


@pytest.mark.parametrize("fields", RESPONSES)
def test_response_stream_is_as_specified(served: Served, fields: dict[str, Any]) -> None:
    response = served.post("/v1/responses", {"model": "auto", "input": "hello", "stream": True, **fields})
    check_typed_events(response.content)


RESPONSE_TOOLS = [{"type": "function", "name": "get_time", "parameters": {"type": "object"}}, {"type": "web_search"}]


@pytest.mark.parametrize("prompt", ["one call", "two calls"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_output_tokens": 3},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "name": "get_time"}},
        {
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "get_time"}],
            }
        },
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ],
)
def test_response_calls_are_as_specified(calling: Served, prompt: str, fields: dict[str, Any]) -> None:
    body = {"model": "auto", "input": prompt, "tools": RESPONSE_TOOLS, **fields}
    check("response", post(calling, "/v1/responses", body))
    check_typed_events(calling.post("/v1/responses", body | {"stream": True}).content)


def check_typed_events(raw: bytes) -> None:
    events = read_events(raw)
    bodies = [json.loads(event.data) for event in events]
    for number, (event, body) in enumerate(zip(events, bodies, strict=True)):
        check("response_event", body)
        assert (event.kind, number) == (body["type"], body["sequence_number"])
    ends = ("response.completed", "response.incomplete", "response.failed")
    assert [body["type"] in ends for body in bodies] == [False] * (len(bodies) - 1) + [True]


def test_models_are_as_specified(served: Served) -> None:
    listed = served.http.get("/v1/models").json()
    check("model_list", listed)
    for model in listed["data"]:
        body = served.http.get(f"/v1/models/{model['id']}").json()
        check("model", body)
        assert body == model


JSON = "application/json"
REFUSALS = {
    "no JSON": (400, "POST", "/v1/chat/completions", b"{", JSON),
    "unknown field": (400, "POST", "/v1/completions", b'{"model": "auto", "prompt": "x", "y": 1}', JSON),
    "wrong value": (400, "POST", "/v1/responses", b'{"model": "auto", "input": 1}', JSON),
    "too long": (400, "POST", "/v1/completions", b'{"model": "auto", "prompt": "%s"}' % (b"x" * 600), JSON),
    "unknown model": (404, "POST", "/v1/completions", b'{"model": "no", "prompt": "x"}', JSON),
    "unknown model to get": (404, "GET", "/v1/models/no", b"", ""),
    "unknown route": (404, "GET", "/v1/nothing", b"", ""),
    "embeddings": (404, "POST", "/v1/embeddings", b"{}", JSON),
    "wrong method": (405, "DELETE", "/v1/models", b"", ""),
    "too large": (413, "POST", "/v1/completions", b" " * (2**21 + 1), JSON),
    "too long a URL": (414, "GET", f"/v1/models/{'x' * 9000}", b"", ""),
    "wrong kind": (415, "POST", "/v1/completions", b"{}", "text/plain"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_is_as_specified(served: Served, name: str) -> None:
    status, method, path, content, kind = REFUSALS[name]
    response = served.http.request(method, path, content=content, headers={"content-type": kind} if kind else {})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    check("error", response.json())


def test_refusals_for_want_of_a_key_are_as_specified(student: TinyStudent) -> None:
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in ("fk-key", "admin")]
    config = ServerConfig(keys=KeysConfig(sha256=(digests[0],)), admin=AdminConfig(key_sha256=digests[1]))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        for path, key, status in (("/v1/models", "none", 401), ("/admin/students", "fk-key", 403)):
            response = served.http.get(path, headers={"authorization": f"Bearer {key}"})
            assert response.status_code == status
            check("error", response.json())
        headers = {"authorization": "Bearer fk-key"}
        response = served.chat("hi", fenhe={"priority": "high"}, headers=headers)
        assert response.status_code == 403
        check("error", response.json())


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_failures_are_as_specified(start: Start, path: str, is_stream: bool) -> None:
    script = {
        "full": Line(refusal=QueueFull("too many")),
        "early": Line(refusal=PathLoading("the path is loading")),
        "broken": Line(pieces=(), error=FAULT),
        "sleepy": Line(delay_s=1e6),
    }
    served = start(script, limits=Limits(request_timeout_s=0.2))
    for prompt, status in (("full", 429), ("early", 503), ("broken", 500), ("sleepy", 504)):
        given = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
        given = {"input": prompt} if "responses" in path else given
        response = served.post(path, {"model": "auto", "stream": is_stream, **given})
        assert response.status_code == status
        check("error", response.json())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_failure_inside_a_stream_is_as_specified(start: Start, path: str) -> None:
    served = start({"broken": LATE_FAULT})
    body = chat_body({}, "broken") if "chat" in path else {"model": "auto", "prompt": "broken"}
    response = served.post(path, body | {"stream": True, "n": 2})
    *chunks, last = read_json_events(response.content)
    assert chunks
    for chunk in chunks:
        check("chat_chunk" if "chat" in path else "completion_chunk", chunk)
    check("error", last)


def test_failure_inside_a_response_stream_is_as_specified(start: Start) -> None:
    served = start({"broken": LATE_FAULT})
    response = served.post("/v1/responses", {"model": "auto", "input": "broken", "stream": True})
    check_typed_events(response.content)


def test_schemas_are_schemas() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", ["chat_completion", "completion", "response", "model", "error"])
def test_schema_refuses_a_body_with_a_field_too_few_or_too_many(served: Served, name: str) -> None:
    bodies = {
        "chat_completion": lambda: served.chat("hello", logprobs=True).json(),
        "completion": lambda: served.post("/v1/completions", {"model": "auto", "prompt": "hello"}).json(),
        "response": lambda: served.post("/v1/responses", {"model": "auto", "input": "hello"}).json(),
        "model": lambda: served.http.get("/v1/models/auto").json(),
        "error": lambda: served.http.get("/v1/nothing").json(),
    }
    body = bodies[name]()
    check(name, body)
    schema = SCHEMAS[name]
    broken = [{key: value for key, value in body.items() if key != missing} for missing in schema["required"]]
    broken.append(body | {"surprise": 1})
    if "choices" in body:
        choice = {key: value for key, value in body["choices"][0].items() if key != "logprobs"}
        broken.append(body | {"choices": [choice]})
    for one in broken:
        with pytest.raises(jsonschema.ValidationError):
            check(name, one)
