"""What the grammar library could not follow in the middle of an answer is refused before there is one."""

import json
from typing import Any

import pytest

from engines.grammar import GrammarCompiler, Masks, json_body
from engines.schema_loosening import MAX_LOOSENED, Loosens
from models.errors import InvalidParameter
from server.generation.json_schema import held_part
from server.generation.schema_width import MAX_ALTERNATIVES, MAX_OPTIONAL, find_too_wide
from tests.counting import num_calls
from tests.server.conftest import make_tokenizer

MAX_BYTES = 2**20


def optional(num: int, required: tuple[int, ...] = (), name: str = "p") -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"{name}{i}": {"type": "integer"} for i in range(num)},
        "required": [f"{name}{i}" for i in required],
        "additionalProperties": False,
    }


def choices(num: int) -> list[dict[str, Any]]:
    return [optional(1, (0,), f"k{i}_") for i in range(num)]


TOO_WIDE: dict[str, tuple[dict[str, Any], str]] = {
    "object": (optional(MAX_OPTIONAL + 1), ""),
    "inside": ({"properties": {"a": {"type": "array", "items": optional(600)}}}, "/properties/a/items"),
    "parts": ({"anyOf": [optional(200, name="a"), optional(200, name="b")]}, ""),
    "references": (
        {"$defs": {"n": optional(200)}, "items": {"anyOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}]}},
        "/items",
    ),
    "patterns": ({"patternProperties": {f"^{i}$": {} for i in range(300)}}, ""),
    "alternatives": ({"properties": {"a": {"anyOf": choices(MAX_ALTERNATIVES)}}}, "/properties/a"),
    "enum": ({"enum": [{"k": i} for i in range(MAX_ALTERNATIVES + 1)]}, ""),
}


@pytest.mark.parametrize("name", TOO_WIDE)
def test_too_wide_schemas_are_refused_with_place_and_limit(name: str) -> None:
    schema, pointer = TOO_WIDE[name]
    with pytest.raises(InvalidParameter, match=r"more than (256|512)") as caught:
        held_part(schema, "tools", Loosens.UNSUPPORTED, MAX_BYTES)
    assert caught.value.param == ("tools" if not pointer else f"tools#{pointer}")


WIDE: dict[str, tuple[dict[str, Any], Any]] = {
    "object": (optional(MAX_OPTIONAL), {"p1": 3, "p200": 1, "p255": 0}),
    "between": (optional(600, tuple(range(0, 600, 200))), {"p0": 1, "p7": 2, "p200": 0, "p400": 3, "p599": 4}),
    "required": (optional(2000, tuple(range(2000))), {f"p{i}": 1 for i in range(2000)}),
    "inside": ({"type": "array", "items": optional(MAX_OPTIONAL)}, [{"p3": 3, "p255": 1}, {"p0": 0}]),
    "parts": ({"anyOf": [optional(128, name="a"), optional(128, name="b")]}, {"b3": 3, "b127": 1}),
    "alternatives": ({"properties": {"a": {"anyOf": choices(500)}}}, {"a": {"k499_0": 1}}),
    "enum": ({"enum": [{"k": i} for i in range(500)]}, {"k": 499}),
    "texts": ({"enum": [f"v{i}" for i in range(3000)]}, "v2999"),
    "recursive": (
        {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}},
        {"n": {"n": {}}},
    ),
    "long name": (optional(1, (0,), "n" * 10_000), {"n" * 10_000 + "0": 1}),
}


@pytest.mark.parametrize("name", WIDE)
def test_the_widest_schemas_are_followed_to_their_end(name: str) -> None:
    schema, value = WIDE[name]
    assert find_too_wide(schema) is None
    tokenizer, masks = make_tokenizer(), Masks()
    matcher = GrammarCompiler(tokenizer, 258).compile(f"start: body\nbody: {json_body(schema)}").matcher()
    for token_id in tokenizer.encode(json.dumps(value)):
        assert token_id in masks.legal_tokens([matcher])[0]
        matcher.advance(token_id)
    assert matcher.library.is_accepting()


def test_a_reference_to_itself_ends() -> None:
    assert find_too_wide({"$ref": "#", "anyOf": [{"$ref": "#"}, {"$ref": "#/nowhere/3"}]}) is None


def test_what_refers_to_a_wide_definition_is_loosened_with_it() -> None:
    refers = {"type": "object", "properties": {f"p{i}": {"$ref": "#/$defs/w"} for i in range(1000)}}
    schema = {"$defs": {"w": {"anyOf": choices(600)}}, **refers, "required": list(refers["properties"])}
    found = held_part(schema, "tools", Loosens.ANYTHING, MAX_BYTES)
    assert [place.pointer for place in found.loosened] == ["/$defs/w"]
    assert found.schema["properties"] == refers["properties"]


@pytest.mark.parametrize("more", [0, 1])
def test_many_wide_places_are_loosened_together(more: int) -> None:
    wide = {f"p{i}": optional(MAX_OPTIONAL + 1) for i in range(MAX_LOOSENED + more)}
    found = held_part({"type": "object", "properties": wide, "required": list(wide)}, "tools", Loosens.ANYTHING, 2**24)
    places = [place.pointer for place in found.loosened]
    assert places == [""] if more else len(places) == MAX_LOOSENED
    assert (found.schema == {"type": "object"}) == bool(more)


def nested(num: int) -> dict[str, Any]:
    """Alternatives in alternatives, each as deep as the other is wide."""
    schema: dict[str, Any] = {"anyOf": [{} for _ in range(num)]}
    for _ in range(num):
        schema = {"anyOf": [schema]}
    return schema


def test_the_work_grows_with_the_schema() -> None:
    small, large = nested(50), nested(200)
    num_small, num_large = num_calls(lambda: find_too_wide(small)), num_calls(lambda: find_too_wide(large))
    assert num_large < 5 * num_small


def test_a_long_chain_of_references_is_followed() -> None:
    steps = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(500)}
    schema = {"$defs": {**steps, "d500": optional(MAX_OPTIONAL + 1)}, "$ref": "#/$defs/d0"}
    assert find_too_wide(schema) is not None
    assert find_too_wide({**schema, "$defs": {**steps, "d500": optional(MAX_OPTIONAL)}}) is None


def test_a_reference_to_what_is_no_schema_adds_nothing() -> None:
    schema = {"properties": {"required": True, "anyOf": True, "properties": True}, "items": {"$ref": "#/properties"}}
    assert find_too_wide(schema) is None
