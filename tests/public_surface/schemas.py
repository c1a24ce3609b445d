"""A JSON Schema written so short that a change of it can be read in a diff."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

PROSE = frozenset({"description", "title"})
PLAIN = frozenset({"anyOf", "enum", "const", "items", "prefixItems", "properties", "required", "additionalProperties"})
"""What `spell` tells in the form of what it gives; other keywords follow in brackets."""


def spell(schema: Any, schemas: Mapping[str, Any] = MappingProxyType({}), inside: tuple[str, ...] = ()) -> Any:
    """A JSON Schema in short, with its references put in and without prose: objects by their fields, with `?` behind
    those that may be left out, lists by their items, the rest as text."""
    if isinstance(schema, bool):
        return "anything" if schema else "nothing"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "as around it" if name in inside else spell(schemas[name], schemas, (*inside, name))

    def within(one: Any) -> Any:
        return spell(one, schemas, inside)

    shape: Any = schema.get("type", "anything")
    if "properties" in schema or isinstance(schema.get("additionalProperties"), dict):
        shape = {field(name, name in schema.get("required", ())): within(one) for name, one in _properties(schema)}
        others = schema.get("additionalProperties", True)
        shape |= {} if others is True else {"(others)": within(others)}
    elif "items" in schema or "prefixItems" in schema:
        shape = [within(one) for one in schema.get("prefixItems", [schema.get("items")])]
    elif "anyOf" in schema:
        several = [within(one) for one in schema["anyOf"]]
        shape = " | ".join(several) if all(isinstance(one, str) for one in several) else {"any of": several}
    elif "enum" in schema or "const" in schema:
        shape = " | ".join(map(_quote, schema.get("enum", [schema.get("const")])))
    more = {key: value for key, value in sorted(schema.items()) if key not in PLAIN | PROSE and key != "type"}
    more = {key: within(value) if key == "contentSchema" else value for key, value in more.items()}
    if "discriminator" in more:
        more["discriminator"] = more["discriminator"]["propertyName"]
    if not more:
        return shape
    is_short = isinstance(shape, str) and all(not isinstance(value, dict) for value in more.values())
    told = ", ".join(f"{key} {_quote(value)}" for key, value in more.items())
    return f"{shape} ({told})" if is_short else {"is": shape, **more}


def _quote(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)


def _properties(schema: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(schema.get("properties", {}).items())


def field(name: str, is_required: bool) -> str:
    return name if is_required else f"{name}?"
