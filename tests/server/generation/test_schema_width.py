"""What the grammar library could not follow in the middle of an answer is refused before there is one."""

import json
from typing import Any

import pytest

from engines.grammar import GrammarCompiler, Masks, json_body
from engines.schema_loosening import Loosens
from models.errors import InvalidParameter
from server.generation.json_schema import held_part
from server.generation.schema_width import MAX_ALTERNATIVES, MAX_OPTIONAL, find_too_wide
from tests.server.conftest import make_tokenizer


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
        held_part(schema, "tools", Loosens.UNSUPPORTED)
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
