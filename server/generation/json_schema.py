"""Which JSON schemas an answer can follow: every keyword must be known, supported and of the right kind.

Anything else is refused, saying where it stands. Whether a schema can be satisfied is found out by compiling it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from models.errors import InvalidParameter, ServingError, UnsupportedField
from server.settings.suggestions import find_near

MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
SINGLES = frozenset({"items", "additionalProperties"})
ASSERTIONS = frozenset(
    (
        "$ref",
        "type",
        "enum",
        "const",
        "required",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    )
)
TEXTS = frozenset({"$ref", "pattern", "format"})
NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
COUNTS = frozenset({"minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"})
ANNOTATIONS = frozenset(
    (
        "$schema",
        "$id",
        "$comment",
        "title",
        "description",
        "default",
        "example",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
        "contentEncoding",
        "contentMediaType",
    )
)
"""Keywords that say nothing about which values are valid. Source: JSON Schema 2020-12, validation, sections 8 and 9."""
KNOWN = MAPS | LISTS | SINGLES | ASSERTIONS | ANNOTATIONS

LEAST_LIKENESS = 0.8
"""How similar a known keyword must be to be suggested, from 0 to 1."""
OPTIONS_OF_THE_LIBRARY = "x-guidance"


def check_schema(schema: Mapping[str, Any], where: str) -> None:
    """Refuse what is certainly wrong. `where` is the request's field that holds the schema.

    Raises: UnsupportedField for keywords that cannot be enforced, InvalidParameter for values of the wrong kind.
    """
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        pointer, part = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            raise _wrong(InvalidParameter, where, pointer, "a schema must be an object, true or false")
        for keyword in part:
            _check_keyword(keyword, part[keyword], where, pointer)
        waiting += subschemas(part, pointer)


def subschemas(schema: Mapping[str, Any], pointer: str) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, with their JSON pointers."""
    for keyword, value in schema.items():
        place = f"{pointer}/{_escaped(keyword)}"
        if keyword in MAPS:
            yield from ((f"{place}/{_escaped(name)}", inner) for name, inner in value.items())
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


def refused(where: str, pointer: str, problem: str) -> ServingError:
    """The error for a schema that is well-formed and yet cannot be followed."""
    return _wrong(InvalidParameter, where, pointer, problem)


def _check_keyword(keyword: str, value: Any, where: str, pointer: str) -> None:
    place = f"{pointer}/{_escaped(keyword)}"
    if keyword == OPTIONS_OF_THE_LIBRARY or (keyword not in KNOWN and not keyword.startswith("x-")):
        near = find_near(keyword, KNOWN, LEAST_LIKENESS)
        hint = "" if near is None else f"; did you mean `{near}`?"
        raise _wrong(UnsupportedField, where, place, f"the keyword `{keyword[:100]}` is not supported{hint}")
    if keyword in MAPS and not isinstance(value, Mapping):
        raise _wrong(InvalidParameter, where, place, f"`{keyword}` must be an object")
    if keyword in LISTS and not (isinstance(value, list) and value):
        raise _wrong(InvalidParameter, where, place, f"`{keyword}` must be a list that is not empty")
    if keyword in TEXTS and not isinstance(value, str):
        raise _wrong(InvalidParameter, where, place, f"`{keyword}` must be text")
    if keyword in NUMBERS | COUNTS and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise _wrong(InvalidParameter, where, place, f"`{keyword}` must be a number")
    if keyword == "required" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise _wrong(InvalidParameter, where, place, "`required` must be a list of names")


def _wrong(kind: type[ServingError], where: str, pointer: str, problem: str) -> ServingError:
    at = f" at {pointer[:500]}" if pointer else ""
    return kind(f"`{where}`{at}: {problem[:500]}", param=f"{where}#{pointer[:500]}" if pointer else where)


def _escaped(name: str) -> str:
    """Source: RFC 6901, section 3."""
    return name.replace("~", "~0").replace("/", "~1")
