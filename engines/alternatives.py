"""Whether the parts of a `oneOf` exclude each other, which makes it the same as `anyOf`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from engines.schema_parts import at

MAX_PARTS = 64
TYPES = frozenset({"object", "array", "string", "number", "boolean", "null"})

Schema = Mapping[str, Any]


def are_apart(parts: Sequence[Any], root: Schema) -> bool:
    """By their types, or by a property that all have to have and that says which one it is."""
    if len(parts) > MAX_PARTS:
        return False
    seen = [_resolved(part, root) for part in parts]
    return all(_exclude(one, other, root) for one, other in combinations(seen, 2))


def _exclude(one: Schema, other: Schema, root: Schema) -> bool:
    if not _types(one) & _types(other):
        return True
    return any(
        name in _required(other) and _differ(one, other, name, root)
        for name in _required(one)
        if _types(one) == _types(other) == {"object"}
    )


def _differ(one: Schema, other: Schema, name: str, root: Schema) -> bool:
    values = [_values(_resolved(part.get("properties", {}).get(name), root)) for part in (one, other)]
    return None not in values and not any(_is_same(a, b) for a in values[0] or () for b in values[1] or ())


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _resolved(part: Any, root: Schema) -> Schema:
    """A part, or what it refers to. One that says more beside a reference is taken by what it refers to."""
    for _ in range(MAX_PARTS):
        reference = part.get("$ref") if isinstance(part, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        part = at(root, unquote(reference[1:]))
    return part if isinstance(part, Mapping) else {}


def _types(part: Schema) -> set[str]:
    return set(_named_types(part.get("type"))) or set(TYPES)


def _named_types(given: Any) -> Iterator[str]:
    for name in given if isinstance(given, list) else [given]:
        if isinstance(name, str):
            yield "number" if name == "integer" else name


def _required(part: Schema) -> frozenset[str]:
    return frozenset(part.get("required", ()))


def _values(part: Schema) -> list[Any] | None:
    """The simple values that a part allows; None where there are others."""
    values = [part["const"]] if "const" in part else part.get("enum")
    simple = isinstance(values, list) and all(not isinstance(one, dict | list) for one in values)
    return values if simple else None
