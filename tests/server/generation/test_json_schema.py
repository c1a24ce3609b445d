"""Annotations have no effect; what a grammar cannot hold is refused where it was promised, and left out elsewhere."""

import difflib
from typing import Any

import jsonschema
import pytest

from engines.schema_loosening import Loosens
from engines.schema_parts import at, locate, replaced
from models.errors import InvalidParameter, ServingError, UnsupportedField
from server.generation import json_schema
from server.generation.json_schema import MAX_COMPARED, held_part
from server.generation.keywords import NOT_HELD
from server.wire.errors import body_of
from tests.counting import num_calls
from tests.server.generation.accepting import accepts

TEXT = {"type": "string"}
MAX_BYTES = 2**20


def held(schema: dict[str, Any], loosens: Loosens = Loosens.NOTHING) -> dict[str, Any]:
    return held_part(schema, "field", loosens, MAX_BYTES).schema


def loosened_in(schema: dict[str, Any], loosens: Loosens = Loosens.ANYTHING) -> list[str]:
    return [place.pointer for place in held_part(schema, "field", loosens, MAX_BYTES).loosened]


def test_a_long_keyword_is_compared_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difflib, "get_close_matches", lambda *_, **__: pytest.fail("compared what is no keyword"))
    assert held({"x" * 100_000: True, "type": "object"}) == {"type": "object"}


def test_few_of_many_unknown_keywords_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda name, *_, **__: compared.append(name))
    held({"properties": {f"p{i}": {f"mark{i}": 1, "mark": 2} for i in range(2 * MAX_COMPARED)}})
    assert len(compared) == MAX_COMPARED == len(set(compared))


UNSUPPORTED: list[tuple[dict[str, Any], str, str]] = [
    ({"uniqueItems": True}, "/uniqueItems", "uniqueItems"),
    ({"properties": {"a/b": {"not": {"type": "null"}}}}, "/properties/a~1b/not", "not"),
    ({"anyOf": [{}, {"requierd": ["a"]}]}, "/anyOf/1/requierd", "did you mean `required`"),
    ({"$defs": {"n": {"if": {}}}}, "/$defs/n/if", "if"),
    ({"items": {"$ref": "other.json#/a"}}, "/items/$ref", "references inside the schema"),
    ({"items": [{"contains": {}}]}, "/items/0/contains", "contains"),
    ({"additionalProperties": {"propertyNames": {"maxLength": 2}}}, "/additionalProperties/propertyNames", "Names"),
    ({"allOf": [{}, {"unevaluatedProperties": TEXT}]}, "/allOf/1/unevaluatedProperties", "unevaluatedProperties"),
]
MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"properties": []}, "/properties", "object"),
    ({"anyOf": []}, "/anyOf", "not empty"),
    ({"enum": []}, "/enum", "not empty"),
    ({"required": "a"}, "/required", "names"),
    ({"properties": {"a": {"required": True}}}, "/properties/a/required", "names"),
    ({"$ref": ["#/a"]}, "/$ref", "text"),
    ({"anyOf": [{"$ref": "#/$defs/gone"}]}, "/anyOf/0/$ref", "gone"),
    ({"pattern": 1}, "/pattern", "text"),
    ({"items": {"minimum": "1"}}, "/items/minimum", "number"),
    ({"maxItems": True}, "/maxItems", "number"),
    ({"maxLength": -1}, "/maxLength", "number"),
    ({"minItems": 1.5}, "/minItems", "number"),
    ({"additionalProperties": "no"}, "/additionalProperties", "object"),
    ({"properties": {"a": 1}}, "/properties/a", "object"),
    ({"type": "strng"}, "/type", "string"),
    ({"items": {"type": ["string", "any"]}}, "/items/type", "string"),
    ({"type": []}, "/type", "string"),
    ({"properties": {"a": {"type": "string", "enum": [1, 2]}}}, "/properties/a/type", "no value"),
]


@pytest.mark.parametrize(
    ("schema", "place", "word", "kind"),
    [*((*one, UnsupportedField) for one in UNSUPPORTED), *((*one, InvalidParameter) for one in MISTAKES)],
)
def test_a_strict_schema_is_refused_with_its_place(
    schema: dict[str, Any], place: str, word: str, kind: type[ServingError]
) -> None:
    with pytest.raises(kind, match=word) as caught:
        held(schema)
    assert caught.value.param == f"field#{place}"
    assert place in caught.value.message
    assert len(body_of(caught.value)) < 5000


@pytest.mark.parametrize(("schema", "place", "word"), UNSUPPORTED)
@pytest.mark.parametrize("loosens", [Loosens.UNSUPPORTED, Loosens.ANYTHING])
def test_what_is_not_supported_loosens_its_place(
    schema: dict[str, Any], place: str, word: str, loosens: Loosens
) -> None:
    found = held_part(schema, "field", loosens, MAX_BYTES)
    assert [(one.where, one.pointer) for one in found.loosened] == [("field", place)]
    assert word in found.loosened[0].problem
    assert at(found.schema, place) is None


@pytest.mark.parametrize(("schema", "place", "word"), MISTAKES)
def test_mistakes_are_left_out_of_tools_alone(schema: dict[str, Any], place: str, word: str) -> None:
    assert loosened_in(schema) == [place]
    with pytest.raises(InvalidParameter, match=word):
        held(schema, Loosens.UNSUPPORTED)


@pytest.mark.parametrize("keyword", sorted(NOT_HELD))
def test_what_no_grammar_holds_is_left_out_and_told(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", keyword: {"x": TEXT}}}, "required": ["a"]}
    assert loosened_in(schema) == [f"/properties/a/{keyword}"]
    assert accepts(held(schema, Loosens.ANYTHING), {"a": "x"})
    assert not accepts(held(schema, Loosens.ANYTHING), {"a": 1})


ANNOTATED: list[dict[str, Any]] = [
    {},
    {"type": "object", "additionalProperties": False, "x-order": 3},
    {"properties": {"not": {"const": {"if": 1}}, "uniqueItems": True}, "required": ["not"]},
    {"title": "t", "description": "d", "default": {"not": 1}, "examples": [{"if": 1}], "$comment": "c"},
    {"enum": [{"uniqueItems": 1}]},
    {"type": "string", "example": "x", "xml": {"name": "x"}, "nullable": True, "externalDocs": {"url": "u"}},
    {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png", "contentSchema": {}},
    {"type": "string", "format": "password"},
    {"type": "integer", "format": "int32"},
    {"type": "string", "format": "phone-number"},
    {"type": "string", "enum": ["a"], "enumDescriptions": ["A"], "markdownDescription": "m", "errorMessage": "e"},
    {"$schema": "http://example.com/own-dialect", "$id": ":::", "id": 7, "$vocabulary": {}, "type": "string"},
    {"type": "array", "uniqueItems": False, "unevaluatedItems": True, "minContains": 0, "required": False},
    {"title": None, "description": None, "properties": None, "required": None, "anyOf": None, "type": None},
    {"x-guidance": {"lenient": True}, "type": "string", "cfn": 1, "optional": True, "order": 2},
    {"propertyNames": {"type": "string"}, "type": "object"},
]


@pytest.mark.parametrize("schema", ANNOTATED)
def test_annotations_are_never_refused_and_have_no_effect(schema: dict[str, Any]) -> None:
    found = held_part(schema, "field", Loosens.NOTHING, MAX_BYTES)
    assert found.loosened == ()
    assert not set(found.schema) & {"title", "description", "x-guidance", "x-order", "format", "$id", "nullable"}
    values: list[Any] = [{}, {"not": {"if": 1}}, "a", 1, [], {"uniqueItems": 1}]
    for value in values:
        known = {name: one for name, one in schema.items() if one is not None and name not in ("$schema", "$id", "id")}
        known.pop("required", None) if known.get("required") is False else None
        assert accepts(found.schema, value) == jsonschema.Draft202012Validator(known).is_valid(value)


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, {}),
        ({"minimum": -9.223372036854775e18 - 1025, "maximum": 9.223372036854775807e18}, {"minimum"}),
        ({"minimum": 0, "maximum": 2**64 - 1}, {"minimum"}),
        ({"exclusiveMinimum": -(10**400), "exclusiveMaximum": 10**400}, {}),
        ({"minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}, {}),
        ({"minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}, {}),
        ({"minimum": -(2**31), "maximum": 2**31 - 1}, {"minimum", "maximum"}),
        ({"minimum": -(2**53) + 1, "maximum": 2**53 - 1}, {"minimum", "maximum"}),
        ({"maxLength": 2**31 - 1, "maxItems": 2**32, "maxProperties": 2**64}, {}),
        ({"maxLength": 10**6, "minLength": 0}, {"maxLength", "minLength"}),
    ],
)
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_bounds_of_a_machine_type_are_none(bounds: dict[str, Any], kept: set[str], kind: str) -> None:
    found = held_part({"type": kind, **bounds}, "field", Loosens.NOTHING, MAX_BYTES)
    if "minimum" in kept and bounds["minimum"] < -(2**62):
        kept = kept - {"minimum"}
    assert set(found.schema) - {"type"} == set(kept)
    assert found.loosened == ()
    assert accepts(found.schema, 7)


def test_types_in_capitals_are_read() -> None:
    schema = {"type": "OBJECT", "properties": {"a": {"type": ["STRING", "NULL"]}}}
    assert held(schema) == {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}


def test_formats_of_the_specification_that_are_not_held_are_told() -> None:
    schema = {"type": "string", "format": "iri", "pattern": "^a"}
    for loosens in Loosens:
        assert loosened_in(schema, loosens) == ["/format"]
        assert held(schema, loosens) == {"type": "string", "pattern": "^a"}


def test_parts_that_nothing_meets_are_kept_apart() -> None:
    schema = {"properties": {"a": {"anyOf": [{"not": {}}, TEXT]}}, "required": ["a"]}
    assert loosened_in(schema) == []
    assert [accepts(held(schema), {"a": one}) for one in ("x", 1)] == [True, False]


def test_unevaluated_properties_of_one_part_are_additional_ones() -> None:
    schema = {"type": "object", "properties": {"a": TEXT}, "unevaluatedProperties": False}
    assert loosened_in(schema) == []
    assert [accepts(held(schema), one) for one in ({"a": "x"}, {"b": 1})] == [True, False]
    with pytest.raises(UnsupportedField):
        held({**schema, "allOf": [{"properties": {"b": {}}}]})


def test_objects_whose_names_stand_in_what_is_left_out_stay_open() -> None:
    schema = {"type": "object", "properties": {"a": TEXT}, "if": {}, "then": {"properties": {"b": {}}}}
    assert held(schema, Loosens.ANYTHING)["additionalProperties"] is True


@pytest.mark.parametrize(
    "schema",
    [
        {"$id": "https://e.org/s", "items": {"$ref": "https://e.org/s#/$defs/List%3Cint%3E"}},
        {"items": {"$ref": "#/$defs/List%3Cint%3E"}},
        {"items": {"$ref": "#name"}},
    ],
)
def test_references_inside_the_schema_are_followed(schema: dict[str, Any]) -> None:
    schema = {**schema, "type": "array", "$defs": {"List<int>": {"$anchor": "name", "type": "integer"}}}
    assert loosened_in(schema) == []
    assert [accepts(held(schema), one) for one in ([1], ["a"])] == [True, False]


def test_schemas_of_older_drafts_mean_what_they_meant() -> None:
    pair = {"type": "array", "items": [TEXT, {"type": "integer"}], "additionalItems": False}
    assert [accepts(held(pair), one) for one in (["a", 1], ["a", "b"], ["a", 1, 2])] == [True, False, False]
    above = {"type": "integer", "minimum": 1, "exclusiveMinimum": True}
    assert [accepts(held(above), one) for one in (1, 2)] == [False, True]


def test_what_is_too_wide_is_loosened_in_tools() -> None:
    wide = {"type": "object", "properties": {f"p{i}": {} for i in range(300)}}
    found = held_part({"type": "object", "properties": {"a": wide, "b": TEXT}}, "field", Loosens.ANYTHING, MAX_BYTES)
    assert [one.pointer for one in found.loosened] == ["/properties/a"]
    assert found.schema["properties"] == {"a": {"type": "object"}, "b": TEXT}


def test_too_deep_a_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(2000):
        schema = {"items": schema}
    with pytest.raises(InvalidParameter, match="deeply"):
        held(schema)
    assert loosened_in({"type": "object", "items": schema}) == [""]
    assert held({"type": "object", "items": schema}, Loosens.ANYTHING) == {"type": "object"}


def test_what_is_held_is_bounded_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "find_too_wide", lambda _: pytest.fail("went through what is too large"))
    schema = {"type": "object", "properties": {f"p{i}": {} for i in range(50)}}
    for loosens in (Loosens.NOTHING, Loosens.UNSUPPORTED):
        with pytest.raises(InvalidParameter, match="max_schema_bytes"):
            held_part(schema, "field", loosens, 200)
    found = held_part(schema, "field", Loosens.ANYTHING, 200)
    assert ([place.pointer for place in found.loosened], found.schema) == ([""], {"type": "object"})


def test_no_more_is_read_than_can_be_held() -> None:
    part = {"$ref": "#", "minLength": 1}
    small, large = {"anyOf": [part] * 1000}, {"anyOf": [part] * 100_000}
    num_small = num_calls(lambda: held_part(small, "field", Loosens.ANYTHING, 1000))
    assert num_calls(lambda: held_part(large, "field", Loosens.ANYTHING, 1000)) == num_small


def test_values_are_compared_once_with_each_type() -> None:
    small, large = ({"type": ["string"] * num, "enum": list(range(num))} for num in (100, 400))
    num_small, num_large = num_calls(lambda: loosened_in(small)), num_calls(lambda: loosened_in(large))
    assert num_large < 5 * num_small


def test_descriptions_do_not_count_in_the_size() -> None:
    schema = {"type": "object", "description": "d" * 1000, "properties": {"a": TEXT}}
    assert held_part(schema, "field", Loosens.NOTHING, 100).schema["properties"] == {"a": TEXT}


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


def test_a_part_is_found_and_replaced_by_its_pointer() -> None:
    schema = {"properties": {"a/b": {"anyOf": [{"x": 1}, {"~": {}}]}}, "type": "object"}
    assert at(schema, "/properties/a~1b/anyOf/1/~0") == {}
    assert [at(schema, one) for one in ("/properties/a", "/properties/a~1b/anyOf/2", "/type/x")] == [None] * 3
    changed = replaced(schema, "/properties/a~1b/anyOf/0", {"y": 2})
    assert changed == {"properties": {"a/b": {"anyOf": [{"y": 2}, {"~": {}}]}}, "type": "object"}
    assert schema["properties"] == {"a/b": {"anyOf": [{"x": 1}, {"~": {}}]}}
