"""What of a JSON schema goes into a grammar: annotations do not, and what no grammar holds is refused or left out.

What is left out loosens its place in the schema, and is named. Whether a schema can be satisfied, and whether the
library follows its patterns, is found out by compiling it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from engines.schema_loosening import MAX_LOOSENED, Loosened, Loosens
from engines.schema_parts import LISTS, MAPS, SINGLES, at, escaped, replaced
from models.errors import InvalidParameter, ServingError, UnsupportedField
from server.generation.keywords import (
    ANNOTATIONS,
    ASSERTIONS,
    FORMATS,
    FORMATS_NOT_HELD,
    NAMING,
    NOT_HELD,
    contradicts,
    mistake_in,
    says_nothing,
)
from server.generation.schema_width import find_too_wide
from server.settings.suggestions import find_near

LEAST_LIKENESS = 0.8
"""How similar a keyword must be for an unknown one to be a misspelling of it, from 0 to 1."""

MAX_COMPARED = 100
"""Different unknown keywords of one schema: comparing one takes as long as reading a hundred."""

NEVER: dict[str, Any] = {"not": {}}
"""A part that no value meets: some clients write optional properties with it."""

DESCRIBING_TOGETHER = ("additionalProperties", "allOf", "anyOf", "oneOf", *NAMING)
ANY_NAMES: tuple[Any, ...] = (True, {}, {"type": "string"})


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a schema that a grammar is to hold, and the places where that is less than was asked for."""

    schema: dict[str, Any]
    loosened: tuple[Loosened, ...] = ()


def held_part(schema: Mapping[str, Any], where: str, loosens: Loosens, max_bytes: int) -> Held:
    """`where` is the request's field that holds the schema, `loosens` what may be left out of it. What is nested too
    deeply, or is still larger than `max_bytes`, is left out as a whole.

    Raises: UnsupportedField for keywords that no grammar holds, InvalidParameter for what is wrong, too large or too
    wide, both only where they may not be left out.
    """
    reader = _Reader(schema, where, loosens, max_bytes)
    try:
        found = reader.read(schema, "")
        is_too_large = len(json.dumps(found)) > max_bytes
    except RecursionError:
        return reader.leave_out_all("it is nested too deeply")
    except _TooLarge:
        is_too_large = True
    if is_too_large:
        return reader.leave_out_all(f"it has more than {max_bytes} bytes (limits.max_schema_bytes)")
    return _narrowed(found if isinstance(found, dict) else {}, reader)


def _narrowed(held: dict[str, Any], reader: "_Reader") -> Held:
    """The schema with no place that is too wide: each is loosened by itself, or all together where they are many."""
    num_places = 0
    while (too_wide := find_too_wide(held)) is not None:
        pointer, problem = too_wide
        if num_places == MAX_LOOSENED:
            return reader.leave_out_all(problem)
        num_places += 1
        reader.leave_out(pointer, problem, is_mistake=True)
        part = at(held, pointer)
        held = replaced(held, pointer, {name: part[name] for name in ("type", "$defs", "definitions") if name in part})
    return Held(schema=held, loosened=tuple(reader.loosened))


def refused(where: str, pointer: str, problem: str) -> ServingError:
    """The error for a schema that is well-formed and yet cannot be followed."""
    return _error(InvalidParameter, where, pointer, problem)


def _error(kind: type[ServingError], where: str, pointer: str, problem: str) -> ServingError:
    at = f" at {pointer[:500]}" if pointer else ""
    return kind(f"`{where}`{at}: {problem[:500]}", param=f"{where}#{pointer[:500]}" if pointer else where)


class _TooLarge(Exception):
    pass


class _Reader:
    """Goes through one schema. `loosened` are the places where something was left out."""

    def __init__(self, root: Mapping[str, Any], where: str, loosens: Loosens, max_bytes: int) -> None:
        self.loosened: list[Loosened] = []
        self._root = root
        self._base = root.get("$id", root.get("id"))
        self._where = where
        self._loosens = loosens
        self._left_bytes = max_bytes
        self._near: dict[str, str | None] = {}

    def leave_out(self, pointer: str, problem: str, *, is_mistake: bool) -> None:
        """Raises: InvalidParameter for a mistake, UnsupportedField for anything else that may not be left out."""
        if self._loosens is Loosens.NOTHING or (self._loosens is Loosens.UNSUPPORTED and is_mistake):
            raise _error(InvalidParameter if is_mistake else UnsupportedField, self._where, pointer, problem)
        self._tell(pointer, problem)

    def _tell(self, pointer: str, problem: str) -> None:
        self.loosened.append(Loosened(where=self._where, pointer=pointer, problem=problem))

    def leave_out_all(self, problem: str) -> Held:
        """Raises: InvalidParameter where a mistake may not be left out."""
        self.leave_out("", problem, is_mistake=True)
        kind = _lower(self._root.get("type"))
        held = {"type": kind} if kind is not None and mistake_in("type", kind) is None else {}
        return Held(schema=held, loosened=tuple(self.loosened[-1:]))

    def read(self, part: Any, pointer: str) -> dict[str, Any] | bool:
        if isinstance(part, bool):
            return part
        if not isinstance(part, Mapping):
            self.leave_out(pointer, "a schema must be an object, true or false", is_mistake=True)
            return {}
        held: dict[str, Any] = {}
        part = _with_older_name(part)
        for keyword, value in part.items():
            if value is not None or keyword == "const":
                held.update(self._read_keyword(keyword, value, f"{pointer}/{escaped(keyword)}"))
        self._count(held)
        if "additionalProperties" not in held and any(keyword in part and keyword not in held for keyword in NAMING):
            held["additionalProperties"] = True
        if "type" in held and "enum" in held and contradicts(held["type"], held["enum"]):
            self.leave_out(f"{pointer}/type", "no value in `enum` has this type", is_mistake=True)
            del held["type"]
        return held

    def _count(self, held: Mapping[str, Any]) -> None:
        """Of the bytes that are left, those that a part takes at least. Raises: _TooLarge."""
        self._left_bytes -= len("{}") + sum(len(keyword) + len('"": 1') for keyword in held)
        if self._left_bytes < 0:
            raise _TooLarge

    def _read_keyword(self, keyword: str, value: Any, place: str) -> Iterator[tuple[str, Any]]:
        """The keyword with what is held of its value; nothing where it is left out."""
        if says_nothing(keyword, value) or (keyword == "propertyNames" and self._is_any_name(value)):
            return
        if keyword not in ASSERTIONS:
            self._check_spelling(keyword, place)
        elif keyword in NOT_HELD:
            self.leave_out(place, f"the keyword `{keyword}` is not supported", is_mistake=False)
        elif keyword == "items" and isinstance(value, list):
            yield keyword, [self.read(one, f"{place}/{index}") for index, one in enumerate(value)]
        elif keyword in SINGLES:
            yield keyword, self.read(value, place)
        else:
            value = _lower(value) if keyword == "type" else value
            mistake = mistake_in(keyword, value)
            if mistake is not None:
                self.leave_out(place, mistake, is_mistake=True)
            else:
                yield from self._read_right(keyword, value, place)

    def _read_right(self, keyword: str, value: Any, place: str) -> Iterator[tuple[str, Any]]:
        if keyword in MAPS:
            yield keyword, {name: self.read(one, f"{place}/{escaped(name)}") for name, one in value.items()}
        elif keyword in LISTS:
            parts = [False if one == NEVER else one for one in value]
            yield keyword, [self.read(one, f"{place}/{index}") for index, one in enumerate(parts)]
        elif keyword == "$ref":
            yield from self._read_reference(value, place)
        elif keyword == "format" and value not in FORMATS:
            if value in FORMATS_NOT_HELD:
                self._tell(place, f"the format `{value}` is not supported")
        else:
            yield keyword, value

    def _is_any_name(self, names: Any) -> bool:
        """A promise about names that holds by itself is kept where one is asked for, and otherwise not relied on."""
        return self._loosens is Loosens.NOTHING and names in ANY_NAMES

    def _check_spelling(self, keyword: str, place: str) -> None:
        if keyword in ANNOTATIONS or keyword.startswith("x-"):
            return
        if keyword not in self._near and len(self._near) < MAX_COMPARED:
            self._near[keyword] = find_near(keyword, ASSERTIONS, LEAST_LIKENESS)
        near = self._near.get(keyword)
        if near is not None:
            problem = f"the keyword `{keyword[:100]}` is not supported; did you mean `{near}`?"
            self.leave_out(place, problem, is_mistake=False)

    def _read_reference(self, reference: str, place: str) -> Iterator[tuple[str, Any]]:
        """Only references inside the schema lead somewhere; `$id` itself is not held."""
        if isinstance(self._base, str) and reference.startswith(f"{self._base}#"):
            reference = reference.removeprefix(self._base)
        if not reference.startswith("#"):
            problem = "`$ref`: only references inside the schema are supported"
            self.leave_out(place, problem, is_mistake=False)
        elif reference[1:2] == "/" and at(self._root, unquote(reference[1:])) is None:
            self.leave_out(place, f"`$ref` leads nowhere: {reference[:200]}", is_mistake=True)
        else:
            yield "$ref", reference


def _with_older_name(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """`unevaluatedProperties: false` says the same as `additionalProperties` where one part names all properties."""
    if part.get("unevaluatedProperties") is not False or any(keyword in part for keyword in DESCRIBING_TOGETHER):
        return part
    return {("additionalProperties" if name == "unevaluatedProperties" else name): one for name, one in part.items()}


def _lower(value: Any) -> Any:
    """Types as JSON Schema writes them; some clients write them in capitals."""
    if isinstance(value, list):
        return [_lower(one) for one in value]
    return value.lower() if isinstance(value, str) else value
