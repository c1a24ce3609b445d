"""Objects of tool arguments have no properties but those that are named, unless somebody says otherwise."""

from typing import Any

import pytest

from engines.schema_loosening import Followed, Loosens
from models.errors import InvalidParameter
from server.generation.closing import closed
from server.generation.json_schema import held_part
from server.generation.property_names import join_sets
from server.generation.tools import argument_rules
from server.settings.config import Limits
from server.wire.chat import FunctionDefinition
from tests.counting import num_calls
from tests.server.generation.accepting import accepts

TEXT = {"type": "string"}
MAX_BYTES = 2**20


def closed_of(schema: dict[str, Any]) -> dict[str, Any]:
    found = closed(schema, MAX_BYTES)
    assert found is not None
    return found


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
    "a property that is no keyword": (
        {"$ref": "#/$defs/properties", "$defs": {"properties": {"type": "object", "properties": {"allOf": True}}}},
        [{"allOf": 1}],
        [{"b": 1}],
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
    found = closed_of(held_part(schema, "f", Loosens.NOTHING, MAX_BYTES).schema)
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
    assert accepts(closed_of(schema), value)


def test_values_are_no_schemas() -> None:
    schema = object_of({"a": {"const": {"properties": {"b": 1}}}, "e": {"enum": [{"allOf": [1]}]}})
    assert accepts(closed_of(schema), {"a": {"properties": {"b": 1}}, "e": {"allOf": [1]}})


def many_references(num: int, target: dict[str, Any]) -> dict[str, Any]:
    """Objects that all extend one part, which may be any of many others."""
    either = {"anyOf": [reference("E") for _ in range(num)]}
    extended = {f"p{i}": {**reference("D"), "properties": {}} for i in range(num)}
    return object_of(extended, required=list(extended), **{"$defs": {"D": either, "E": target}})


def chain(num: int, last: dict[str, Any]) -> dict[str, Any]:
    """An object that is extended in `num` steps."""
    steps = {f"d{i}": {**reference(f"d{i + 1}"), "properties": {}} for i in range(num)}
    return {"type": "object", "properties": {}, **reference("d0"), "$defs": {**steps, f"d{num}": last}}


GROWING: dict[str, Any] = {
    "no names": lambda num: many_references(num, {"type": "object"}),
    "names": lambda num: many_references(num, object_of({f"n{i}": {} for i in range(num)})),
    "others": lambda num: many_references(num, object_of(additionalProperties=True)),
    "chain": lambda num: chain(num, object_of({"z": TEXT})),
    "circle": lambda num: chain(num, {**reference("d0"), "properties": {"z": TEXT}}),
}


@pytest.mark.parametrize("kind", GROWING)
def test_the_work_grows_with_the_schema(kind: str) -> None:
    small, large = GROWING[kind](100), GROWING[kind](400)
    num_small, num_large = num_calls(lambda: closed(small, 10_000)), num_calls(lambda: closed(large, 10_000))
    assert num_large < 5 * num_small


def test_a_long_chain_of_references_is_followed() -> None:
    schema = chain(500, object_of({"z": TEXT}))
    found = closed_of(held_part(schema, "f", Loosens.NOTHING, MAX_BYTES).schema)
    assert (found["properties"], found["additionalProperties"]) == ({"z": True}, False)


def test_names_are_written_again_up_to_a_bound() -> None:
    schema = {"properties": {}, "allOf": [object_of({"name": TEXT}), object_of({"other": TEXT})]}
    num_bytes = len('"name": true, "other": true, ')
    assert closed(schema, num_bytes) is not None
    assert closed(schema, num_bytes - 1) is None


def test_a_set_is_that_of_all_that_can_be_reached() -> None:
    edges = {"a": ["b"], "b": ["c", "d"], "c": ["b"], "d": ["e"], "e": [], "f": ["e", "f"]}
    own = {node: 1 << index for index, node in enumerate(edges)}
    names = {node: {other for other in edges if bits & own[other]} for node, bits in join_sets(own, edges).items()}
    assert {node: "".join(sorted(found)) for node, found in names.items()} == {
        "a": "abcde",
        "b": "bcde",
        "c": "bcde",
        "d": "de",
        "e": "e",
        "f": "ef",
    }


def rule_of(parameters: dict[str, Any], *, is_strict: bool = False) -> Followed:
    function = FunctionDefinition(name="f", parameters=parameters, strict=is_strict)
    return argument_rules([function], None, Limits(max_schema_bytes=20_000))[0]


@pytest.mark.parametrize("num", [40, 2000])
def test_what_is_too_large_once_closed_is_loosened_as_a_whole(num: int) -> None:
    names = [f"n{i}" for i in range(200)]
    schema = many_references(num, object_of({name: {} for name in names}, required=names))
    found = rule_of(schema)
    assert ([place.pointer for place in found.loosened], found.rule.schema) == ([""], {"type": "object"})
    with pytest.raises(InvalidParameter, match="max_schema_bytes") as caught:
        rule_of(schema, is_strict=True)
    assert caught.value.param == "tools[0].function.parameters"


def test_a_tool_that_is_nested_too_deeply_is_loosened_as_a_whole() -> None:
    schema: dict[str, Any] = {}
    for _ in range(2000):
        schema = {"items": schema}
    assert rule_of(object_of({"a": schema})).rule.schema == {"type": "object"}
    with pytest.raises(InvalidParameter, match="deeply"):
        rule_of(object_of({"a": schema}), is_strict=True)
