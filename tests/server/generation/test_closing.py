"""Objects of tool arguments have no properties but those that are named, unless somebody says otherwise."""

from typing import Any

import pytest

from engines.schema_loosening import Loosens
from server.generation.closing import closed
from server.generation.json_schema import held_part
from tests.server.generation.accepting import accepts

TEXT = {"type": "string"}


def object_of(properties: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", **({} if properties is None else {"properties": properties}), **more}


def reference(name: str = "D") -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


DEFINED = {"$defs": {"D": object_of({"a": TEXT})}}
RULED_OUT: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "named": (object_of({"a": TEXT}), [{"a": "x"}, {}], [{"b": 1}, {"a": "x", "b": 1}]),
    "inside": (object_of({"o": object_of({"a": TEXT})}), [{"o": {"a": "x"}}], [{"o": {"b": 1}}]),
    "in a list": (
        object_of({"l": {"type": "array", "items": object_of({"a": {}})}}),
        [{"l": [{"a": 1}]}],
        [{"l": [{"b": 1}]}],
    ),
    "in a pair": (object_of({"l": {"prefixItems": [object_of({"a": {}})]}}), [{"l": [{"a": 1}]}], [{"l": [{"b": 1}]}]),
    "as values": (object_of(additionalProperties=object_of({"a": {}})), [{"x": {"a": 1}}], [{"x": {"b": 1}}]),
    "required": (
        object_of({"a": TEXT}, required=["a", "z"]),
        [{"a": "x", "z": 1}],
        [{"a": "x"}, {"a": "x", "z": 1, "b": 1}],
    ),
    "reference": (object_of({"o": reference()}, **DEFINED), [{"o": {"a": "x"}}], [{"o": {"b": 1}}]),
    "wrapped reference": (
        object_of({"o": {"allOf": [reference()], "description": "d"}}, **DEFINED),
        [{"o": {"a": "x"}}],
        [{"o": {"b": 1}}],
    ),
    "both": (
        {"type": "object", "allOf": [reference(), {"properties": {"b": TEXT}}], **DEFINED},
        [{"a": "x", "b": "y"}, {"b": "y"}],
        [{"c": 1}],
    ),
    "extended": (object_of({"b": TEXT}, **reference(), **DEFINED), [{"b": "y", "a": "x"}], [{"c": 1}]),
    "extended here, plain there": (
        object_of({"p": reference(), "q": {"allOf": [reference(), object_of({"b": TEXT})]}}, **DEFINED),
        [{"p": {"a": "x"}, "q": {"a": "x", "b": "y"}}],
        [{"p": {"b": "y"}}, {"q": {"c": 1}}],
    ),
    "either": (
        object_of(
            {
                "o": {
                    "anyOf": [
                        object_of({"a": TEXT}, required=["a"]),
                        object_of({"b": TEXT}, required=["b"]),
                        {"type": "null"},
                    ]
                }
            }
        ),
        [{"o": {"a": "x"}}, {"o": {"b": "x"}}, {"o": None}],
        [{"o": {"c": 1}}, {"o": {"a": "x", "b": "x"}}],
    ),
    "one of two is required": (
        object_of({"a": TEXT, "b": TEXT}, anyOf=[{"required": ["a"]}, {"required": ["b"]}]),
        [{"a": "x"}, {"a": "x", "b": "x"}],
        [{}, {"a": "x", "c": 1}],
    ),
    "own and either": (
        object_of({"k": TEXT}, anyOf=[{"properties": {"a": TEXT}}, {"properties": {"b": TEXT}}]),
        [{"k": "x", "a": "x"}, {"b": "x"}],
        [{"k": "x", "c": 1}],
    ),
    "itself": (
        object_of({"v": TEXT, "kids": {"type": "array", "items": {"$ref": "#"}}}),
        [{"kids": [{"v": "x", "kids": []}]}],
        [{"kids": [{"z": 1}]}],
    ),
    "properties named like keywords": (
        object_of({"allOf": True, "$ref": TEXT, "properties": TEXT, "anyOf": {"type": "array"}}),
        [{"allOf": 1, "$ref": "a", "properties": "b"}],
        [{"c": 1}],
    ),
}


@pytest.mark.parametrize("name", RULED_OUT)
def test_an_object_has_the_properties_that_are_named(name: str) -> None:
    schema, legal, illegal = RULED_OUT[name]
    found = closed(held_part(schema, "f", Loosens.NOTHING).schema)
    assert [accepts(found, one) for one in legal] == [True] * len(legal)
    assert [accepts(found, one) for one in illegal] == [False] * len(illegal)


LEFT_OPEN: dict[str, tuple[dict[str, Any], Any]] = {
    "no properties": (object_of(), {"b": 1}),
    "empty properties": (object_of({}), {"b": 1}),
    "required alone": (object_of(required=["a"]), {"a": 1, "b": 1}),
    "said so": (object_of({"a": TEXT}, additionalProperties=True), {"b": 1}),
    "of a kind": (object_of({"a": TEXT}, additionalProperties={"type": "integer"}), {"b": 1}),
    "patterns": (object_of({"a": TEXT}, patternProperties={"^b": {}}), {"b": 1}),
    "said so in a part": (object_of({"a": TEXT}, allOf=[{"additionalProperties": True}, {}]), {"b": 1}),
    "of a part that is not known": (
        object_of({"a": TEXT}, **{"$ref": "#z", "$defs": {"D": {"$anchor": "z"}}}),
        {"b": 1},
    ),
}


@pytest.mark.parametrize("name", LEFT_OPEN)
def test_an_object_that_names_none_or_says_so_is_open(name: str) -> None:
    schema, value = LEFT_OPEN[name]
    assert accepts(closed(schema), value)


def test_values_are_no_schemas() -> None:
    schema = object_of({"a": {"const": {"properties": {"b": 1}}}, "e": {"enum": [{"allOf": [1]}]}})
    assert accepts(closed(schema), {"a": {"properties": {"b": 1}}, "e": {"allOf": [1]}})
