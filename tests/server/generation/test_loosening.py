"""Schemas that a grammar cannot hold: what is left out is told by header and log, and what was promised is refused."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.generation.loosened import HEADER, MAX_PLACES
from server.settings.config import Limits, ServerConfig
from tests.server.conftest import Served, run_server
from tests.server.random_engine import open_random

CHAT = "/v1/chat/completions"
NAMES = {"type": "object", "propertyNames": {"type": "string"}}
NAMES_AT = "/tools/0/function/parameters/properties/a/propertyNames"


@pytest.fixture(scope="module")
def bound() -> Iterator[Served]:
    with run_server([open_random()], ServerConfig()) as running:
        yield running


def tool(a: Any, *, name: str = "r", **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": a}, "required": ["a"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def ask(served: Served, *tools: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"model": "random", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, **fields}
    return served.post(CHAT, {**body, **({"tools": tools} if tools else {})})


def format_of(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}}


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "auto"}, {"tool_choice": "required"}, {"stream": True}])
def test_the_place_of_a_tool_is_loosened_and_told(bound: Served, fields: dict[str, Any]) -> None:
    response = ask(bound, tool(NAMES), **fields)
    assert response.status_code == 200
    assert response.headers[HEADER] == NAMES_AT


@pytest.mark.parametrize("is_cached", [False, True])
def test_kept_grammars_and_answers_tell_it_too(bound: Served, is_cached: bool) -> None:
    fields = {"temperature": 0 if is_cached else 1}
    found = [ask(bound, tool({"pattern": "^(?!x)y", "type": "string"}), **fields) for _ in range(2)]
    assert [one.headers["x-fenhe-cache"] == "hit" for one in found] == [False, is_cached]
    assert [one.headers[HEADER] for one in found] == ["/tools/0/function/parameters/properties/a/pattern"] * 2


def test_the_log_says_which_place(bound: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "server.generation.loosened"):
        response = ask(bound, tool({"type": "array", "uniqueItems": True}))
    (line,) = [record.getMessage() for record in caplog.records if "schema loosened" in record.getMessage()]
    assert response.headers["x-request-id"] in line
    assert "/tools/0/function/parameters/properties/a/uniqueItems" in line
    assert "the keyword `uniqueItems` is not supported" in line


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "^(?=x)"}, "/pattern"),
        ({"type": "string", "pattern": "(a)\\1"}, "/pattern"),
        ({"type": "string", "pattern": "\\bword\\b"}, "/pattern"),
        ({"type": "string", "pattern": "(("}, "/pattern"),
        ({"type": "string", "minLength": 2**53}, "/minLength"),
        ({"type": "integer", "minimum": 10**19}, "/minimum"),
        ({"type": "number", "multipleOf": 1e-300}, "/multipleOf"),
        ({"type": "number", "multipleOf": 0}, "/multipleOf"),
        ({"oneOf": [{"type": "string"}, {"minLength": 1}]}, "/oneOf"),
        ({"type": "object", "properties": {"x": {}, "y": {}}, "minProperties": 3}, "/minProperties"),
        ({"type": "object", "patternProperties": {"^a": {"type": "string"}, "^ab": {}}}, "/patternProperties"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(300)}}, ""),
        ({"$ref": "https://e.org/other.json"}, "/$ref"),
        ({"$ref": "#/components/schemas/Pet"}, "/$ref"),
        ({"type": "string", "format": "regex"}, "/format"),
        ({"type": "strng"}, "/type"),
    ],
)
def test_what_only_compiling_finds_loosens_its_place(bound: Served, schema: dict[str, Any], place: str) -> None:
    response = ask(bound, tool(schema), tool({"type": "integer"}, name="s"), tool_choice="required")
    assert (response.status_code, response.json().get("error")) == (200, None)
    assert response.headers[HEADER] == f"/tools/0/function/parameters/properties/a{place}"


@pytest.mark.parametrize("fields", [{"strict": True}, {"strict": False}, {}])
@pytest.mark.parametrize(
    ("schema", "place"),
    [(NAMES | {"propertyNames": {"maxLength": 3}}, "/propertyNames"), ({"type": "string", "pattern": "(?=a)"}, "")],
)
def test_strict_tools_and_formats_alone_are_refused(
    bound: Served, schema: dict[str, Any], place: str, fields: dict[str, Any]
) -> None:
    by_tool = ask(bound, tool(schema, **fields))
    by_format = ask(bound, **format_of(schema, **fields))
    if fields.get("strict"):
        params = [one.json()["error"]["param"] for one in (by_tool, by_format)]
        schemas = ["tools[0].function.parameters#/properties/a", "response_format.json_schema.schema#"]
        assert params == [f"{schemas[0]}{place}", f"{schemas[1]}{place}".removesuffix("#")]
        assert [one.status_code for one in (by_tool, by_format)] == [400, 400]
    else:
        assert [one.status_code for one in (by_tool, by_format)] == [200, 200]
        assert by_format.headers[HEADER].startswith("/response_format/json_schema/schema/")


def test_a_format_of_the_newer_api_is_told_under_its_name(bound: Served) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}
    body = {"model": "random", "input": "hello", "max_output_tokens": 16}
    response = bound.post(
        "/v1/responses", {**body, "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}}
    )
    assert (response.status_code, response.headers[HEADER]) == (200, "/text/format/schema/uniqueItems")


def test_what_loses_nothing_says_nothing(bound: Served) -> None:
    ordinary = {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1, "example": 1}
    assert HEADER not in ask(bound, tool(ordinary, strict=True)).headers
    assert HEADER not in ask(bound).headers


@pytest.mark.parametrize("format", ["regex", "iri", "json-pointer", "uri-template", "idn-email"])
def test_formats_that_are_not_held_are_told_of_strict_schemas_too(bound: Served, format: str) -> None:
    text = {"type": "string", "format": format}
    called = ask(bound, tool(text, strict=True))
    assert called.headers[HEADER] == "/tools/0/function/parameters/properties/a/format"
    schema = {"type": "object", "properties": {"a": text}, "required": ["a"]}
    answer = ask(bound, **format_of(schema, strict=True))
    assert answer.headers[HEADER] == "/response_format/json_schema/schema/properties/a/format"


def test_what_still_works_is_kept(bound: Served) -> None:
    dated = {"type": "string", "pattern": "^(?=2)", "format": "date"}
    matched = {"type": "string", "pattern": "^ab$", "format": "regex"}
    texts = []
    for schema in (dated, matched):
        response = ask(bound, tool(schema), tool_choice="required", parallel_tool_calls=False, max_tokens=300, seed=1)
        (call,) = response.json()["choices"][0]["message"]["tool_calls"]
        texts.append(json.loads(call["function"]["arguments"])["a"])
    assert texts[1] == "ab"
    assert len(texts[0]) == 10
    assert texts[0][4] == texts[0][7] == "-"


def test_the_header_is_bounded_and_ascii(bound: Served) -> None:
    names = [f"é, {i}\n" for i in range(MAX_PLACES + 5)]
    schema = {"type": "object", "properties": {name: {"type": "string", "pattern": "(?=a)"} for name in names}}
    value = ask(bound, tool(schema)).headers[HEADER]
    assert value.isascii()
    assert value.split(", ")[0] == "/tools/0/function/parameters/properties/a/properties/%C3%A9%2C%200%0A/pattern"
    assert len(value.split(", ")) == MAX_PLACES + 1
    assert value.endswith(", +5")
    deep = {"type": "object", "properties": {"n" * 300: {"not": {}}}}
    assert ask(bound, tool(deep)).headers[HEADER] == "/tools/0/function/parameters/properties/a/properties"


def test_a_schema_with_very_many_places_is_loosened_as_a_whole(bound: Served) -> None:
    properties = {f"p{i}": {"type": "string", "pattern": "(?=a)"} for i in range(60)}
    response = ask(bound, tool({"type": "object", "properties": properties}), tool_choice="required")
    assert (response.status_code, response.headers[HEADER]) == (200, "/tools/0/function/parameters")


@pytest.mark.parametrize("wrong", [{"type": "array"}, {"$ref": "#/none"}, {"properties": 3}, {"x" * 70_000: {}}])
def test_without_a_choice_nothing_is_checked_or_compiled(bound: Served, wrong: dict[str, Any]) -> None:
    function = {"name": "r", "parameters": wrong, "strict": True}
    before = metric(bound)
    response = ask(bound, {"type": "function", "function": function}, tool_choice="none")
    assert response.status_code == 200
    assert HEADER not in response.headers
    assert metric(bound) == before


def metric(served: Served) -> list[str]:
    return [line for line in httpx.get(f"{served.url}/metrics").text.splitlines() if "fenhe_grammars_total{" in line]


def test_a_named_choice_compiles_the_named_function_alone(bound: Served) -> None:
    choice = {"type": "function", "function": {"name": "s"}}
    response = ask(bound, tool(NAMES), tool({"const": 1}, name="s"), tool_choice=choice, max_tokens=200, seed=1)
    assert HEADER not in response.headers
    (call,) = response.json()["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("s", {"a": 1})


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"properties": {"a": {"type": "string"}}},
        {"type": None, "properties": None},
        {"type": ["object", "null"]},
        {"type": "OBJECT"},
        {"$ref": "#/$defs/D", "$defs": {"D": {"type": "object", "properties": {"a": {"type": "string"}}}}},
        {
            "$ref": "#/$defs/D",
            "$defs": {"D": {"type": "object", "properties": {"a": {"const": 1}, "d": {"$ref": "#/$defs/D"}}}},
        },
        {"oneOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]},
    ],
)
def test_arguments_are_an_object_however_that_is_said(bound: Served, parameters: dict[str, Any]) -> None:
    function = {"name": "r", "parameters": parameters}
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400, "seed": 3}
    response = ask(bound, {"type": "function", "function": function}, **fields)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].startswith("{")


@pytest.mark.parametrize("name", ["github.create_issue", "mcp__files__read/lines", "ns:tool", "n" * 128])
def test_functions_have_the_names_that_tool_servers_give(bound: Served, name: str) -> None:
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400, "seed": 1}
    for is_stream in (False, True):
        response = ask(bound, tool({"const": 1}, name=name), stream=is_stream, **fields)
        assert f'"name":"{name}"' in response.text
        assert '"finish_reason":"tool_calls"' in response.text


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": [], "tool_choice": "auto"}, {"tool_choice": "auto"}])
def test_no_tools_are_no_tools(bound: Served, fields: dict[str, Any]) -> None:
    response = ask(bound, **fields)
    assert response.status_code == 200
    assert "tool_calls" not in response.json()["choices"][0]["message"]


def test_the_largest_tools_are_loosened_where_all_are_too_large() -> None:
    large = {"type": "object", "properties": {f"property{i}": {} for i in range(50)}}
    with run_server([open_random()], ServerConfig(limits=Limits(max_schema_bytes=600))) as running:
        response = ask(running, tool({"type": "integer"}), tool(large, name="s"), tool_choice="required")
        assert (response.status_code, response.headers[HEADER]) == (200, "/tools/1/function/parameters")
        described = tool({"type": "integer", "description": "d" * 5000})
        assert HEADER not in ask(running, described).headers
        refused = ask(running, tool(large, strict=True)).json()["error"]
        assert (refused["param"], "max_schema_bytes" in refused["message"]) == ("tools[0].function.parameters", True)
