"""The schemas inside a JSON schema: where they stand, and which of them has a problem."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
SINGLES = frozenset({"items", "additionalItems", "additionalProperties"})
"""`items` was a list of schemas before `prefixItems` was."""


def subschemas(schema: Mapping[str, Any], pointer: str) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, with their JSON pointers."""
    for keyword, value in schema.items():
        place = f"{pointer}/{escaped(keyword)}"
        if keyword in MAPS:
            yield from ((f"{place}/{escaped(name)}", inner) for name, inner in value.items())
        elif keyword in LISTS or (keyword == "items" and isinstance(value, list)):
            yield from ((f"{place}/{index}", inner) for index, inner in enumerate(value))
        elif keyword in SINGLES:
            yield place, value


def combined(part: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Any]:
    """The parts that say together with this one what a value is: those in its lists, and where its `$ref` leads."""
    for keyword in ("allOf", "anyOf", "oneOf"):
        parts = part.get(keyword)
        if isinstance(parts, list):  # a reference may lead to what is no schema
            yield from parts
    target = referred(part, root)
    if target is not None:
        yield target


def referred(part: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Where a part's `$ref` leads; None without one, and for a name (`$anchor`) or another document."""
    reference = part.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        return at(root, unquote(reference[1:]))
    return None


def locate(schema: Mapping[str, Any], problem: str, problem_of: Callable[[Mapping[str, Any]], str | None]) -> str:
    """The pointer of the innermost part that has the same problem by itself; "" for the whole."""
    definitions = definitions_of(schema)
    pointer, part = "", schema
    while True:
        # Definitions first: parts that refer to a wrong one have its problem too.
        inside = sorted(
            subschemas(part, pointer), key=lambda found: not found[0].startswith(("/$defs/", "/definitions/"))
        )
        wrong = ((place, inner) for place, inner in inside if isinstance(inner, Mapping))
        found = next((one for one in wrong if problem_of({**definitions, **one[1]}) == problem), None)
        if found is None:
            return pointer
        pointer, part = found


def definitions_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: schema[name] for name in ("$defs", "definitions") if name in schema}


def at(schema: Mapping[str, Any], pointer: str) -> Any:
    """What stands at a pointer; None where it leads nowhere. Source: RFC 6901, section 4."""
    part: Any = schema
    for step in _steps(pointer):
        if isinstance(part, list):
            part = part[int(step)] if step.isdecimal() and int(step) < len(part) else None
        else:
            part = part.get(step) if isinstance(part, Mapping) else None
    return part


def replaced(schema: Mapping[str, Any], pointer: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a schema with another part at a pointer that leads somewhere; what is beside the way is shared."""
    return dict(_replaced(schema, _steps(pointer), part))


def _replaced(inside: Any, steps: list[str], part: Mapping[str, Any]) -> Any:
    if not steps:
        return part
    if isinstance(inside, list):
        index = int(steps[0])
        return [*inside[:index], _replaced(inside[index], steps[1:], part), *inside[index + 1 :]]
    return {**inside, steps[0]: _replaced(inside[steps[0]], steps[1:], part)}


def _steps(pointer: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def escaped(name: str) -> str:
    """Source: RFC 6901, section 3."""
    return name.replace("~", "~0").replace("/", "~1")
