"""The keywords of JSON Schema: which a grammar holds, which it cannot, and what values each may have.

Source: JSON Schema 2020-12 and, where their words differ, drafts 4 to 7.
"""

from collections.abc import Callable, Mapping
from typing import Any

from engines.schema_parts import LISTS, MAPS, SINGLES

TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"},
)
"""Formats that an answer keeps to."""
FORMATS_NOT_HELD = frozenset(
    (
        "idn-email",
        "idn-hostname",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "uri-reference",
        "uri-template",
    )
)
"""The other formats of the specification. All formats beyond these are annotations."""

COUNTS = frozenset({"minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"})
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
NUMBERS = BOUNDS | {"multipleOf"}
TEXTS = frozenset({"$ref", "$anchor", "pattern", "format"})
HELD = MAPS | LISTS | SINGLES | COUNTS | NUMBERS | TEXTS | {"type", "enum", "const", "required"}

NOT_HELD = frozenset(
    (
        "not",
        "if",
        "propertyNames",
        "contains",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
        "$dynamicRef",
        "$recursiveRef",
    )
)
"""Keywords that say which values are valid, and that no grammar holds."""
NAMING = frozenset({"if", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef", "$ref"})
"""Where these are left out, properties may be missing that only they name."""
ASSERTIONS = HELD | NOT_HELD
"""Everything else says nothing about which values are valid: annotations, and what only qualifies these (`then`)."""

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
        "nullable",
        "then",
        "else",
        "minContains",
        "maxContains",
    )
)
"""Some of them, which are no misspelling of anything."""

SAYING_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "not": (False,),
    "required": (False,),
}
"""Values with which a keyword that is not held allows everything."""

WIDEST_COUNT = 2**31 - 1
WIDEST_BOUND = 2.0**63
"""Bounds this wide come from types such as int64 and float64, not from their author: there might as well be none."""


def says_nothing(keyword: str, value: Any) -> bool:
    """Whether a keyword has a value with which every value is valid."""
    if keyword in ("maxItems", "maxLength", "maxProperties"):
        return _is_number(value) and value >= WIDEST_COUNT
    if keyword in ("minimum", "exclusiveMinimum"):
        return _is_number(value) and _float(value) <= -WIDEST_BOUND
    if keyword in ("maximum", "exclusiveMaximum"):
        return _is_number(value) and _float(value) >= WIDEST_BOUND
    return any(value == one and type(value) is type(one) for one in SAYING_NOTHING.get(keyword, ()))


def contradicts(types: Any, values: list[Any]) -> bool:
    """Whether no one of these values has one of these types."""
    names = {types} if isinstance(types, str) else set(types)
    return not any(_has_type(value, name) for name in names for value in values)


def _has_type(value: Any, name: str) -> bool:
    if name == "integer":
        return _is_number(value) and value == _whole(value)
    return (name == "number" and _is_number(value)) or (name != "number" and isinstance(value, _PYTHON[name]))


def mistake_in(keyword: str, value: Any) -> str | None:
    """What is wrong with the kind of a keyword's value."""
    kind = next((kind for keywords, kind in _KINDS if keyword in keywords), None)
    if kind is None:
        return None
    is_right, must = kind
    return None if is_right(value) else f"`{keyword}` must be {must}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")


def _whole(number: float) -> int | None:
    return int(number) if abs(_float(number)) < float("inf") else None


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == _whole(value)


_PYTHON: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


Kind = tuple[Callable[[Any], bool], str]
_KINDS: tuple[tuple[frozenset[str], Kind], ...] = (
    (MAPS, (lambda value: isinstance(value, Mapping), "an object")),
    (LISTS | {"enum"}, (lambda value: isinstance(value, list) and bool(value), "a list that is not empty")),
    (TEXTS, (lambda value: isinstance(value, str), "text")),
    (frozenset({"exclusiveMinimum", "exclusiveMaximum"}), (lambda value: isinstance(value, int | float), "a number")),
    (NUMBERS, (_is_number, "a number")),
    (COUNTS, (_is_count, "a number of things")),
    (frozenset({"type"}), (_is_type, f"one of {', '.join(sorted(TYPES))}, or a list of these")),
    (frozenset({"required"}), (_is_names, "a list of names")),
)
