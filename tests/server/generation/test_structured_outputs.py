"""vLLM's `structured_outputs` and the older `guided_*`, in chats and text completions: the answer has the form."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from server.settings.config import Limits, ServerConfig
from tests.server.conftest import Served, run_server
from tests.server.random_engine import open_random

PATHS = ("/v1/chat/completions", "/v1/completions")
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["x"],
    "additionalProperties": False,
}
LARK = 'start: "<" word ">"\nword: /[a-c]{1,3}/'
GBNF = 'root ::= "<" word ">"\nword ::= [a-c] [a-c]?'
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": POINT}}]


@pytest.fixture(scope="module")
def bound() -> Iterator[Served]:
    with run_server([open_random()], ServerConfig(limits=Limits(max_schema_bytes=4096))) as running:
        yield running


def post(served: Served, path: str, **fields: Any) -> Any:
    prompt = {"messages": [{"role": "user", "content": "hello"}]} if "chat" in path else {"prompt": "hello"}
    return served.post(path, {"model": "random", "max_tokens": 300, "temperature": 0, **prompt, **fields})


def answer_of(served: Served, path: str, **fields: Any) -> str:
    response = post(served, path, **fields)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"] if "chat" in path else choice["text"])


def is_point(text: str) -> bool:
    return bool(0 <= json.loads(text)["x"] <= 99)


FORMS: list[tuple[str, Any, Any]] = [
    ("json", POINT, is_point),
    ("json", json.dumps(POINT), is_point),
    ("regex", r"[0-9]{3}/[a-b]", re.compile(r"[0-9]{3}/[a-b]").fullmatch),
    ("regex", r"^[0-9]{3}\/x$", re.compile(r"[0-9]{3}/x").fullmatch),
    ("regex", "a\nb|[/]\\n", {"a\nb", "/\n"}.__contains__),
    ("choice", ["yes", 'no "quoted"', "多😀"], {"yes", 'no "quoted"', "多😀"}.__contains__),
    ("choice", ["one"], "one".__eq__),
    ("grammar", LARK, re.compile("<[a-c]{1,3}>").fullmatch),
    ("grammar", GBNF, re.compile("<[a-c]{1,2}>").fullmatch),
    ("json_object", True, lambda text: isinstance(json.loads(text), dict)),
]


@pytest.mark.parametrize(("kind", "value", "fits"), FORMS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("path", PATHS)
def test_answer_has_the_form_that_is_asked_for(bound: Served, path: str, kind: str, value: Any, fits: Any) -> None:
    # A random student seldom ends an object of any keys by itself.
    end = {"logit_bias": {str(ord("}")): 100}} if kind == "json_object" else {}
    assert fits(answer_of(bound, path, structured_outputs={kind: value}, **end))
    assert fits(answer_of(bound, path, **{f"guided_{kind}": value}, **end))


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_schema", "json_schema": {"name": "p", "schema": POINT}},
        {"type": "json_schema", "json_schema": {"schema": POINT, "$comment": "no name"}},
        {"type": "json_object", "schema": POINT},
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_format_is_that_of_both_endpoints(bound: Served, path: str, wanted: Any) -> None:
    assert is_point(answer_of(bound, path, response_format=wanted))


def test_every_prompt_of_a_completion_has_the_form(bound: Served) -> None:
    choices = post(bound, "/v1/completions", prompt=["a", "b"], guided_choice=["yes"], n=2).json()["choices"]
    assert [choice["text"] for choice in choices] == ["yes"] * 4


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False, "disable_any_whitespace": False}},
        {"structured_outputs": None, "guided_json": None, "guided_json_object": False, "guided_decoding_backend": "x"},
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_what_asks_for_nothing_is_free_text(bound: Served, path: str, fields: dict[str, Any]) -> None:
    assert post(bound, path, **fields).json()["choices"] == post(bound, path).json()["choices"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json_object"}, "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regx": "a"}}, "structured_outputs.regx"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        (
            {"structured_outputs": {"regex": "a", "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
        ),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs.regex"),
        ({"guided_regex": r"\bword"}, "guided_regex"),
        ({"guided_regex": "a" * 5000}, "guided_regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"structured_outputs": {"grammar": "hello there"}}, "structured_outputs.grammar"),
        ({"guided_grammar": ""}, "guided_grammar"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar"),
        ({"guided_grammar": "root ::= " + "(" * 3000}, "guided_grammar"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[" * 5000}}, "structured_outputs.json"),
        ({"guided_choice": ["a" * 5000]}, "guided_choice"),
        ({"structured_outputs": {"json": {"type": "x"}}}, "structured_outputs.json"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_form_that_cannot_be_had_is_refused_by_name(
    bound: Served, path: str, fields: dict[str, Any], param: str
) -> None:
    response = post(bound, path, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"].partition("#")[0]) == (400, param)
    assert "llguidance" not in error["message"]
    assert len(error["message"]) < 500


def test_form_beside_tools_is_that_of_the_text(bound: Served) -> None:
    text = answer_of(bound, PATHS[0], tools=TOOLS, guided_regex="[ab]{3}", logit_bias={str(ord("<")): -100})
    assert re.fullmatch("[ab]{3}", text)
    named = {"type": "function", "function": {"name": "f"}}
    response = post(bound, PATHS[0], tools=TOOLS, tool_choice=named, guided_regex="a")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "guided_regex")
