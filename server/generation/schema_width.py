"""How much a schema allows at one place: what the next token of an answer costs grows with the square of that."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engines.schema_parts import subschemas

MAX_OPTIONAL = 256
"""Optional properties that can follow each other: listing the tokens that may come next takes 7 ms then, 22 at 500."""
MAX_ALTERNATIVES = 512
LISTS_OF_ALTERNATIVES = ("anyOf", "oneOf", "allOf")


@dataclass(slots=True, frozen=True)
class Width:
    """What can come next at one place: properties of objects, and values that are not simple."""

    optional: int = 0
    alternatives: int = 1

    def __add__(self, other: "Width") -> "Width":
        return Width(self.optional + other.optional, self.alternatives + other.alternatives)


def find_too_wide(schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """The pointer of a part that allows too much next to each other, and what is wrong with it."""
    widths = Widths(schema)
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        pointer, part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        problem = _problem_of(widths.of(part))
        if problem is not None:
            return pointer, problem
        waiting += subschemas(part, pointer)
    return None


def _problem_of(width: Width) -> str | None:
    if width.optional > MAX_OPTIONAL:
        return (
            f"{width.optional} optional properties can follow each other here, more than {MAX_OPTIONAL}; "
            "put some of them in `required`, or into nested objects"
        )
    if width.alternatives > MAX_ALTERNATIVES:
        return f"{width.alternatives} alternatives are more than {MAX_ALTERNATIVES} at one place; use fewer"
    return None


class Widths:
    """Widths of the parts of one schema, each reference followed once."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._referred: dict[str, Width] = {}

    def of(self, part: Any) -> Width:
        if not isinstance(part, Mapping):
            return Width()
        width = Width(_longest_run(part), max(1, _num_compound(part.get("enum"))))
        if isinstance(part.get("$ref"), str):
            width += self._of_reference(part["$ref"])
        for keyword in LISTS_OF_ALTERNATIVES:
            for one in part.get(keyword, ()):
                width += self.of(one)
        return width

    def _of_reference(self, reference: str) -> Width:
        known = self._referred.get(reference)
        if known is None:
            self._referred[reference] = Width()  # one that leads back to itself adds nothing
            known = self._referred[reference] = self.of(_resolve(self._schema, reference))
        return known


def _longest_run(part: Mapping[str, Any]) -> int:
    """Optional properties between required ones; patterns stand for properties that come last."""
    return max(_runs(part)) if "properties" in part or "patternProperties" in part else 0


def _runs(part: Mapping[str, Any]) -> Iterator[int]:
    required = set(part.get("required", ()))
    length = 0
    for name in part.get("properties", ()):
        if name in required:
            yield length
            length = 0
        else:
            length += 1
    yield length + len(part.get("patternProperties", ()))


def _num_compound(values: Any) -> int:
    """Objects and lists among the values of an `enum`; the simple ones are one pattern together."""
    return sum(isinstance(value, dict | list) for value in values) if isinstance(values, list) else 0


def _resolve(schema: Mapping[str, Any], reference: str) -> Any:
    """Source: RFC 6901. What leads nowhere is found by compiling."""
    part: Any = schema if reference.startswith("#") else None
    for escaped in reference.split("/")[1:]:
        name = escaped.replace("~1", "/").replace("~0", "~")
        if isinstance(part, list) and name.isdecimal() and int(name) < len(part):
            part = part[int(name)]
        else:
            part = part.get(name) if isinstance(part, Mapping) else None
    return part
