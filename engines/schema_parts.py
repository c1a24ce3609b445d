"""The schemas inside a JSON schema: where they stand, and which of them has a problem."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
SINGLES = frozenset({"items", "additionalProperties"})


def subschemas(schema: Mapping[str, Any], pointer: str) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, with their JSON pointers."""
    for keyword, value in schema.items():
        place = f"{pointer}/{escaped(keyword)}"
        if keyword in MAPS:
            yield from ((f"{place}/{escaped(name)}", inner) for name, inner in value.items())
        elif keyword in LISTS:
            yield from ((f"{place}/{index}", inner) for index, inner in enumerate(value))
        elif keyword in SINGLES:
            yield place, value


def locate(schema: Mapping[str, Any], problem: str, problem_of: Callable[[Mapping[str, Any]], str | None]) -> str:
    """The pointer of the innermost part that has the same problem by itself; "" for the whole."""
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
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


def escaped(name: str) -> str:
    """Source: RFC 6901, section 3."""
    return name.replace("~", "~0").replace("/", "~1")
