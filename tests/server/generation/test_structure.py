"""`response_format` as the official client sends it: answers parse, and schemas that cannot be followed are refused."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from engines.scripted import Line
from models.errors import EngineUnhealthy
from server.settings.config import KeysConfig, Limits, ServerConfig
from tests.server.conftest import Served, TinyStudent, make_engine, open_scripted, run_server
from tests.server.random_engine import backward_student, open_random

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "on": {"type": "boolean"}},
    "required": ["x", "on"],
    "additionalProperties": False,
}


class Light(pydantic.BaseModel):
    colour: Literal["red", "green"]
    on: bool


class Crossing(pydantic.BaseModel):
    lights: list[Light] = pydantic.Field(max_length=2)
    main: Light


@pytest.fixture(scope="module")
def bound() -> Iterator[Served]:
    with run_server([open_random()], ServerConfig()) as running:
        yield running


def ask(served: Served, prompt: str = "hello", **fields: Any) -> Any:
    fields = {"max_tokens": 600, **fields}
    return served.client.chat.completions.create(
        model="random", messages=[{"role": "user", "content": prompt}], **fields
    )


def schema_format(schema: Any, **fields: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


def test_schema_answers_parse_into_the_client_s_models(bound: Served) -> None:
    answer = bound.client.chat.completions.parse(
        model="random",
        messages=[{"role": "user", "content": "hello"}],
        response_format=Crossing,
        max_tokens=900,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Crossing)
    assert answer.choices[0].finish_reason == "stop"


def test_every_choice_keeps_to_the_schema(bound: Served) -> None:
    answer = ask(bound, n=4, response_format=schema_format(POINT, strict=True), seed=3)
    found = [json.loads(choice.message.content) for choice in answer.choices if choice.finish_reason == "stop"]
    assert len(found) >= 2
    assert all(one.keys() == {"x", "on"} and 0 <= one["x"] <= 99 for one in found)
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_streamed_answers_keep_to_the_schema(bound: Served) -> None:
    fields: dict[str, Any] = {"response_format": schema_format(POINT), "temperature": 0}
    chunks = list(ask(bound, stream=True, **fields))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert json.loads(text).keys() == {"x", "on"}
    assert text == ask(bound, **fields).choices[0].message.content


def test_client_s_stream_parses_into_its_models(bound: Served) -> None:
    with bound.client.chat.completions.stream(
        model="random",
        messages=[{"role": "user", "content": "hello"}],
        response_format=Crossing,
        max_tokens=900,
        temperature=0,
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert isinstance(message.parsed, Crossing)


def test_responses_parse_into_the_client_s_models(bound: Served) -> None:
    fields: dict[str, Any] = {"model": "random", "input": "hello", "max_output_tokens": 900, "temperature": 0}
    whole = bound.client.responses.parse(text_format=Crossing, **fields)
    with bound.client.responses.stream(text_format=Crossing, **fields) as stream:
        streamed = stream.get_final_response()
    assert isinstance(whole.output_parsed, Crossing)
    assert streamed.output_parsed == whole.output_parsed


def test_a_stop_string_ends_the_answer_before_it(bound: Served) -> None:
    choice = ask(bound, response_format=schema_format({"const": "one two"}), stop=[" two"]).choices[0]
    assert (choice.message.content, choice.finish_reason) == ('"one', "stop")


def test_kept_answers_are_those_of_their_schema(bound: Served) -> None:
    def outcome_of(schema: Any) -> tuple[str, Any]:
        body = {"model": "random", "messages": [{"role": "user", "content": "keep"}], "temperature": 0}
        response = bound.post("/v1/chat/completions", {**body, "response_format": schema_format(schema)})
        return response.headers["x-fenhe-cache"], json.loads(response.json()["choices"][0]["message"]["content"])

    asked = [outcome_of({"const": word}) for word in ("a", "b", "a")]
    assert asked == [("miss", "a"), ("miss", "b"), ("hit", "a")]


def test_a_fallback_keeps_to_the_schema_in_its_own_tokens(student: TinyStudent) -> None:
    sick = make_engine({"math": Line(refusal=EngineUnhealthy("stopping"))})
    students = [open_random(student=backward_student()), open_scripted(student, sick, ("math",))]
    with run_server(students, ServerConfig()) as running:
        body = {"model": "auto", "messages": [{"role": "user", "content": "math"}]}
        response = running.post("/v1/chat/completions", {**body, "response_format": schema_format({"enum": ["yes"]})})
    assert response.headers["x-fenhe-student"] == "random"
    assert response.json()["choices"][0]["message"]["content"] == '"yes"'


def test_json_object_is_any_object(bound: Served) -> None:
    answer = ask(bound, response_format={"type": "json_object"}, max_tokens=3)
    assert answer.choices[0].message.content.startswith("{")


def test_answers_cut_short_say_so(bound: Served) -> None:
    answer = ask(bound, response_format=schema_format(POINT), max_tokens=2)
    assert answer.choices[0].finish_reason == "length"


def test_logprobs_are_the_raw_ones(bound: Served) -> None:
    answer = ask(bound, response_format=schema_format({"const": True}), logprobs=True, top_logprobs=1, temperature=0)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == "true"
    assert any(token.logprob < token.top_logprobs[0].logprob for token in tokens)


def test_text_format_binds_nothing(served: Served) -> None:
    assert served.chat("hello", response_format={"type": "text"}).status_code == 200
    assert served.engine.submitted[-1].sampling.grammar is None


@pytest.mark.parametrize(
    ("schema", "place", "code", "word"),
    [
        (
            {"type": "object", "properties": {"a": {"not": {"type": "null"}}}},
            "/properties/a/not",
            "unsupported_parameter",
            "not",
        ),
        ({"type": "object", "properties": {"a": {"type": "strng"}}}, "/properties/a/type", "invalid_value", "string"),
        ({"items": {"type": "string", "pattern": "(?=a)"}}, "/items", "invalid_value", "look-around"),
        ({"items": {"type": "string", "pattern": "(a)\\1"}}, "/items", "invalid_value", "back-references"),
        ({"anyOf": [{"$ref": "#/$defs/gone"}]}, "/anyOf/0/$ref", "invalid_value", "gone"),
        ({"items": {"$ref": "https://somewhere/else"}}, "/items/$ref", "unsupported_parameter", "inside the schema"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "", "invalid_value", "minimum"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "", "invalid_value", "oneOf"),
    ],
)
def test_strict_schemas_are_refused_with_their_place(
    bound: Served, schema: dict[str, Any], place: str, code: str, word: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(bound, response_format=schema_format(schema, strict=True))
    error = caught.value
    assert error.param == "response_format.json_schema.schema" + (f"#{place}" if place else "")
    assert error.code == code
    assert word in error.message


def test_a_schema_nothing_can_meet_is_refused(bound: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(bound, response_format=schema_format({"$ref": "#"}))
    assert caught.value.param == "response_format.json_schema.schema"
    assert "no value" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": schema_format({}) | {"x": 1}}, "response_format.x"),
        ({"response_format": schema_format({}, name="a b")}, "response_format.json_schema.name"),
    ],
)
def test_formats_are_refused_by_field(served: Served, fields: dict[str, Any], param: str) -> None:
    response = served.chat("hello", **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_schemas_are_bounded_in_size() -> None:
    config = ServerConfig(limits=Limits(max_schema_bytes=200))
    with run_server([open_random()], config) as running:
        wide = {"type": "object", "properties": {f"p{i}": {} for i in range(50)}}
        with pytest.raises(openai.BadRequestError, match="max_schema_bytes") as caught:
            ask(running, response_format=schema_format(wide))
        assert caught.value.param == "response_format.json_schema.schema"


COSTLY = {"allOf": [{"type": "string", "pattern": f".*a.{{{30 + i}}}b.*"} for i in range(13)]}
"""Takes seconds to compile, and hundreds of MB."""
OPTIONAL = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(600)}}


@pytest.mark.parametrize("field", ["response_format", "strict tools", "text"])
def test_more_optional_properties_than_can_be_followed_are_refused(bound: Served, field: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": OPTIONAL, "strict": True}}
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "response_format": ("/v1/chat/completions", {"response_format": schema_format(OPTIONAL)}),
        "strict tools": ("/v1/chat/completions", {"tools": [tool], "tool_choice": "required"}),
        "text": (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "name": "answer", "schema": OPTIONAL}}},
        ),
    }
    path, fields = asked[field]
    said = {"input": "hello"} if field == "text" else {"messages": [{"role": "user", "content": "hello"}]}
    response = bound.post(path, {"model": "random", **said, **fields})
    assert response.status_code == 400
    assert "600 optional properties can follow each other here, more than 256" in response.json()["error"]["message"]


def test_a_tenant_s_costly_schemas_hold_up_no_other_tenant(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    entries = [f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n' for name in "ab"]
    file.write_text("".join(entries), encoding="utf-8")
    config = ServerConfig(keys=KeysConfig(file=file), limits=Limits(grammar_timeout_s=1.0))
    with run_server([open_random()], config) as running, ThreadPoolExecutor() as threads:

        def ask_for(key: str, schema: Any) -> httpx.Response:
            body = {"model": "random", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
            headers = {"authorization": f"Bearer {key}"}
            return running.post(
                "/v1/chat/completions", {**body, "response_format": schema_format(schema)}, headers=headers
            )

        heavy = [threads.submit(ask_for, "a", {**COSTLY, "maxLength": 500 + number}) for number in range(4)]
        light = [ask_for("b", {"const": f"answer {number}"}) for number in range(4)]
        assert [one.status_code for one in light] == [200] * 4
        errors = [one.result().json()["error"] for one in heavy]
        metrics = httpx.get(f"{running.url}/metrics", headers={"authorization": "Bearer a"}).text
    assert all("make it simpler" in error["message"] and error["param"] == "response_format" for error in errors)
    assert 'fenhe_grammars_total{outcome="compiled",student="random"} 4.0' in metrics
    assert 'fenhe_grammars_total{outcome="refused",student="random"} 4.0' in metrics
