"""Which JSON schemas an answer can follow: every keyword must be known, supported and of the right kind.

Anything else is refused, saying where it stands. Whether a schema can be satisfied is found out by compiling it.
"""

from collections.abc import Mapping
from typing import Any

from engines.schema_parts import LISTS, MAPS, SINGLES, escaped, subschemas
from models.errors import InvalidParameter, ServingError, UnsupportedField
from server.generation.schema_width import find_too_wide
from server.settings.suggestions import find_near

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
    too_wide = find_too_wide(schema)
    if too_wide is not None:
        raise refused(where, *too_wide)


def refused(where: str, pointer: str, problem: str) -> ServingError:
    """The error for a schema that is well-formed and yet cannot be followed."""
    return _wrong(InvalidParameter, where, pointer, problem)


def _check_keyword(keyword: str, value: Any, where: str, pointer: str) -> None:
    place = f"{pointer}/{escaped(keyword)}"
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
