"""Objects of tool arguments: one that names its properties and does not say whether there may be others has no others.

JSON Schema leaves such objects open; a model then makes properties up. Where several parts describe one object
(`allOf`, `$ref` beside `properties`), it is closed over the names of all of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from engines.schema_parts import MAPS, SINGLES, at, escaped, subschemas

COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
SAYING = ("additionalProperties", "patternProperties")
"""With one of these, somebody has said which other properties there may be."""

Schema = Mapping[str, Any]


def closed(schema: Schema) -> dict[str, Any]:
    """A copy of a schema that was read, with its objects closed."""
    closer = _Closer(schema)
    found = closer.whole(schema, "")
    assert isinstance(found, dict)
    return found


class _Closer:
    """Goes through one schema. A part is whole where it alone says what a value is, and a share where others have a say
    too, which only closes together with them."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._shares: set[str] = set()
        """Pointers of the parts that a share refers to."""
        self._followed: set[str] = set()
        self._find_shares(root)

    def whole(self, part: Any, pointer: str) -> Any:
        if not isinstance(part, Mapping):
            return part
        if pointer in self._shares:
            return self._inside(part, pointer, are_shares=True)
        found = self._inside(part, pointer, are_shares=self._is_shared(part))
        if not self._closes_here(part) or self._says(part, set()):
            return found
        properties = dict.fromkeys(self._names(part, set()), True) | found.get("properties", {})
        return {**found, "properties": properties, "additionalProperties": False} if properties else found

    def _inside(self, part: Schema, pointer: str, *, are_shares: bool) -> dict[str, Any]:
        """A copy with everything below closed; the parts that it is combined of may be shares."""
        found = dict(part)
        for keyword, value in part.items():
            place = f"{pointer}/{keyword}"
            if keyword in MAPS:
                found[keyword] = {name: self.whole(one, f"{place}/{escaped(name)}") for name, one in value.items()}
            elif keyword in COMBINING and isinstance(value, list):
                go = self._share if are_shares else self.whole
                found[keyword] = [go(one, f"{place}/{index}") for index, one in enumerate(value)]
            elif isinstance(value, list) and keyword in ("items", "prefixItems"):
                found[keyword] = [self.whole(one, f"{place}/{index}") for index, one in enumerate(value)]
            elif keyword in SINGLES:
                found[keyword] = self.whole(value, place)
        return found

    def _share(self, part: Any, pointer: str) -> Any:
        return self._inside(part, pointer, are_shares=True) if isinstance(part, Mapping) else part

    def _is_shared(self, part: Schema) -> bool:
        """Whether more than one part describes the object."""
        combined = [keyword for keyword in COMBINING if keyword in part]
        return bool(combined) and (
            "properties" in part or len(combined) > 1 or ("allOf" in part and len(part["allOf"]) > 1)
        )

    def _closes_here(self, part: Schema) -> bool:
        """A part that is nothing but alternatives, or another name for a part, is closed where those stand, unless
        that part is a share."""
        if self._is_shared(part) or not any(keyword in part for keyword in COMBINING):
            return True
        return _pointer_in(part) in self._shares

    def _members(self, part: Schema, seen: set[str]) -> Iterator[Schema]:
        """The other parts that describe the same value; each reference is followed once."""
        for keyword in COMBINING[:3]:
            yield from (one for one in part.get(keyword, ()) if isinstance(one, Mapping))
        pointer = _pointer_in(part)
        if pointer is not None and pointer not in seen:
            seen.add(pointer)
            found = at(self._root, pointer)
            if isinstance(found, Mapping):
                yield found

    def _names(self, part: Schema, seen: set[str]) -> Iterator[str]:
        yield from part.get("properties", {})
        for member in self._members(part, seen):
            yield from self._names(member, seen)
        if part.get("properties"):
            yield from part.get("required", ())

    def _says(self, part: Schema, seen: set[str]) -> bool:
        is_unknown = "$ref" in part and _pointer_in(part) is None
        return (
            is_unknown
            or any(keyword in part for keyword in SAYING)
            or any(self._says(member, seen) for member in self._members(part, seen))
        )

    def _find_shares(self, root: Schema) -> None:
        waiting: list[tuple[str, Any]] = [("", root)]
        while waiting:
            pointer, part = waiting.pop()
            if isinstance(part, Mapping):
                if self._is_shared(part):
                    self._add_shares(part)
                waiting += subschemas(part, pointer)

    def _add_shares(self, part: Schema) -> None:
        pointer = _pointer_in(part)
        if pointer is not None:
            self._shares.add(pointer)
        for member in self._members(part, self._followed):
            self._add_shares(member)


def _pointer_in(part: Schema) -> str | None:
    """Where a part's `$ref` leads in the same schema; None without one, and for a name (`$anchor`)."""
    reference = part.get("$ref")
    if reference == "#" or (isinstance(reference, str) and reference.startswith("#/")):
        return unquote(reference[1:])
    return None
