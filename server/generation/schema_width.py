"""How much a schema allows at one place: what the next token of an answer costs grows with the square of that."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from engines.schema_parts import combined, subschemas

MAX_OPTIONAL = 256
"""Optional properties that can follow each other: listing the tokens that may come next takes 7 ms then, 22 at 500."""
MAX_ALTERNATIVES = 512
DEFINITIONS = ("/$defs/", "/definitions/")


@dataclass(slots=True, frozen=True)
class Width:
    """What can come next at one place: properties of objects, and values that are not simple."""

    optional: int = 0
    alternatives: int = 1

    def __add__(self, other: "Width") -> "Width":
        return Width(self.optional + other.optional, self.alternatives + other.alternatives)


def find_too_wide(schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """The pointer of a part that allows too much next to each other, and what is wrong with it.

    Definitions first: what refers to one is as wide.
    """
    widths = Widths(schema)
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        pointer, part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        problem = _problem_of(widths.of(part))
        if problem is not None:
            return pointer, problem
        waiting += sorted(subschemas(part, pointer), key=lambda found: found[0].startswith(DEFINITIONS))
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
    """Widths of the parts of one schema, each worked out once."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._known: dict[int, Width] = {}

    def of(self, part: Mapping[str, Any]) -> Width:
        """Those that a part is combined of come before it; one that leads back to itself adds nothing."""
        begun: set[int] = set()
        waiting = [part]
        while waiting:
            one = waiting[-1]
            if id(one) in self._known:
                waiting.pop()
            elif id(one) in begun:
                self._known[id(waiting.pop())] = self._together(one)
            else:
                begun.add(id(one))
                waiting += (inner for inner in combined(one, self._schema) if self._is_new(inner, begun))
        return self._known[id(part)]

    def _is_new(self, part: Any, begun: Set[int]) -> bool:
        return isinstance(part, Mapping) and id(part) not in begun and id(part) not in self._known

    def _together(self, part: Mapping[str, Any]) -> Width:
        own = Width(_longest_run(part), max(1, _num_compound(part.get("enum"))))
        return sum((self._known.get(id(one), Width()) for one in combined(part, self._schema)), own)


def _longest_run(part: Mapping[str, Any]) -> int:
    """Optional properties between required ones; patterns stand for properties that come last."""
    return max(_runs(part)) if "properties" in part or "patternProperties" in part else 0


def _runs(part: Mapping[str, Any]) -> Iterator[int]:
    required, length = _names_in(part, "required"), 0
    for name in _names_in(part, "properties"):
        if name in required:
            yield length
            length = 0
        else:
            length += 1
    yield length + len(_names_in(part, "patternProperties"))


def _names_in(part: Mapping[str, Any], keyword: str) -> Set[str]:
    """Names; none where a reference led to what is no schema."""
    found = part.get(keyword)
    return dict.fromkeys(found if isinstance(found, list | dict) else ()).keys()


def _num_compound(values: Any) -> int:
    """Objects and lists among the values of an `enum`; the simple ones are one pattern together."""
    return sum(isinstance(value, dict | list) for value in values) if isinstance(values, list) else 0
