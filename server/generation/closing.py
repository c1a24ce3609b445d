"""Objects of tool arguments: one that names its properties and does not say whether there may be others has no others.

JSON Schema leaves such objects open; a model then makes properties up. Where several parts describe one object
(`allOf`, `$ref` beside `properties`), it is closed over the names of all of them.
"""

from collections.abc import Mapping
from typing import Any

from engines.schema_parts import MAPS, SINGLES, combined, referred, subschemas
from server.generation.property_names import PropertyNames

COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
BYTES_BESIDE_NAME = len('"": true, ')

Schema = Mapping[str, Any]


def closed(schema: Schema, max_bytes: int) -> dict[str, Any] | None:
    """A copy of a schema that was read, with its objects closed; None where it is nested too deeply, or the names that
    are written once more for that take more than `max_bytes`."""
    try:
        found = _Closer(schema, max_bytes).closed_part(schema)
    except (RecursionError, _TooLarge):
        return None
    assert isinstance(found, dict)
    return found


class _TooLarge(Exception):
    pass


class _Closer:
    """Goes through one schema, in steps that grow with its size alone.

    An ordinary part alone says what a value is, and is closed by itself. A fragment describes an object together with
    other parts: it stays open, and the part that combines them is closed.
    """

    def __init__(self, root: Schema, max_bytes: int) -> None:
        self._root = root
        self._left_bytes = max_bytes
        self._names = PropertyNames(root)
        self._referred_fragments = self._find_referred_fragments()
        """The ids of the parts that fragments refer to."""

    def closed_part(self, part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        if id(part) in self._referred_fragments:
            return self._open_fragment(part)
        found = self._with_closed_subschemas(part, combines_fragments=_combines_fragments(part))
        if not self._closes_here(part) or self._names.is_decided(part):
            return found
        own = found.get("properties", {})
        properties = own | self._added_names(part, own)
        return {**found, "properties": properties, "additionalProperties": False} if properties else found

    def _open_fragment(self, part: Any) -> Any:
        return self._with_closed_subschemas(part, combines_fragments=True) if isinstance(part, Mapping) else part

    def _with_closed_subschemas(self, part: Schema, *, combines_fragments: bool) -> dict[str, Any]:
        """A copy with everything below closed, but for the fragments that it is combined of."""
        found = dict(part)
        for keyword, value in part.items():
            if keyword in MAPS:
                found[keyword] = {name: self.closed_part(one) for name, one in value.items()}
            elif keyword in COMBINING and isinstance(value, list):
                go = self._open_fragment if combines_fragments else self.closed_part
                found[keyword] = [go(one) for one in value]
            elif isinstance(value, list) and keyword in ("items", "prefixItems"):
                found[keyword] = [self.closed_part(one) for one in value]
            elif keyword in SINGLES:
                found[keyword] = self.closed_part(value)
        return found

    def _closes_here(self, part: Schema) -> bool:
        """A part that is nothing but alternatives, or another name for a part, is closed where those stand, unless
        that part is a fragment."""
        if _combines_fragments(part) or not any(keyword in part for keyword in COMBINING):
            return True
        return id(referred(part, self._root)) in self._referred_fragments

    def _added_names(self, part: Schema, own: Schema) -> dict[str, Any]:
        """Raises: _TooLarge."""
        added: dict[str, Any] = {}
        for name in self._names.of(part):
            if name not in own:
                added[name] = True
                self._left_bytes -= len(name) + BYTES_BESIDE_NAME
                if self._left_bytes < 0:
                    raise _TooLarge
        return added

    def _find_referred_fragments(self) -> set[int]:
        waiting, combining = [self._root], list[Schema]()
        while waiting:
            part = waiting.pop()
            if _combines_fragments(part):
                combining.append(part)
            waiting += (one for _, one in subschemas(part, "") if isinstance(one, Mapping))
        targets, seen = set[int](), set[int]()
        while combining:
            part = combining.pop()
            if id(part) not in seen:
                seen.add(id(part))
                targets.add(id(referred(part, self._root)))
                combining += (one for one in combined(part, self._root) if isinstance(one, Mapping))
        return targets - {id(None)}


def _combines_fragments(part: Schema) -> bool:
    """Whether more than one part describes the object."""
    combining = [keyword for keyword in COMBINING if keyword in part]
    return bool(combining) and (
        "properties" in part or len(combining) > 1 or ("allOf" in part and len(part["allOf"]) > 1)
    )
