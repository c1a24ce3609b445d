"""Every keyword is known and supported, or refused, saying where it stands."""

import difflib
from typing import Any

import pytest

from engines.schema_parts import locate
from models.errors import InvalidParameter, ServingError, UnsupportedField
from server.generation.json_schema import check_schema
from server.wire.errors import body_of


def test_long_keyword_is_compared_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difflib, "get_close_matches", lambda *_, **__: pytest.fail("compared what is no keyword"))
    with pytest.raises(UnsupportedField) as caught:
        check_schema({"x" * 100_000: True, "type": "object"}, "tools")
    assert len(body_of(caught.value)) < 5000


@pytest.mark.parametrize(
    ("schema", "place", "kind", "word"),
    [
        ({"uniqueItems": True}, "/uniqueItems", UnsupportedField, "uniqueItems"),
        ({"properties": {"a/b": {"not": {}}}}, "/properties/a~1b/not", UnsupportedField, "not"),
        ({"anyOf": [{}, {"requierd": ["a"]}]}, "/anyOf/1/requierd", UnsupportedField, "did you mean `required`"),
        ({"x-guidance": {"lenient": True}}, "/x-guidance", UnsupportedField, "x-guidance"),
        ({"$defs": {"n": {"if": {}}}}, "/$defs/n/if", UnsupportedField, "if"),
        ({"items": [{}]}, "/items", InvalidParameter, "object"),
        ({"properties": []}, "/properties", InvalidParameter, "object"),
        ({"anyOf": []}, "/anyOf", InvalidParameter, "not empty"),
        ({"required": "a"}, "/required", InvalidParameter, "names"),
        ({"$ref": ["#/a"]}, "/$ref", InvalidParameter, "text"),
        ({"pattern": 1}, "/pattern", InvalidParameter, "text"),
        ({"items": {"minimum": "1"}}, "/items/minimum", InvalidParameter, "number"),
        ({"maxItems": True}, "/maxItems", InvalidParameter, "number"),
        ({"additionalProperties": "no"}, "/additionalProperties", InvalidParameter, "object"),
    ],
)
def test_schema_is_refused_with_its_place(
    schema: dict[str, Any], place: str, kind: type[ServingError], word: str
) -> None:
    with pytest.raises(kind, match=word) as caught:
        check_schema(schema, "field")
    assert caught.value.param == f"field#{place}"
    assert place in caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "additionalProperties": False, "x-order": 3},
        {"properties": {"not": {"const": {"if": 1}}, "uniqueItems": True}, "required": ["not"]},
        {"title": "t", "description": "d", "default": {"not": 1}, "examples": [{"if": 1}], "$comment": "c"},
        {"enum": [{"uniqueItems": 1}]},
    ],
)
def test_schema_values_and_annotations_are_no_keywords(schema: dict[str, Any]) -> None:
    check_schema(schema, "field")


def test_locate_finds_the_innermost_part_with_the_problem() -> None:
    def problem_of(schema: Any) -> str | None:
        return "bad" if "'pattern'" in str(schema) else None

    schema = {"properties": {"a": {"items": {"pattern": "x"}}, "b": {}}}
    assert locate(schema, "bad", problem_of) == "/properties/a/items"
    assert locate({"pattern": "x"}, "bad", problem_of) == ""


def test_locate_prefers_the_definition_to_what_refers_to_it() -> None:
    def problem_of(schema: Any) -> str | None:
        definition = schema.get("$defs", {}).get("n", {})
        return "bad" if "pattern" in schema or ("$ref" in str(schema) and "pattern" in definition) else None

    schema = {"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"pattern": "x"}}}
    assert locate(schema, "bad", problem_of) == "/$defs/n"
