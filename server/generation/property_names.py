"""The properties that the parts of a schema name together, where several parts describe one object."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from engines.schema_parts import combined, subschemas

DECIDING = ("additionalProperties", "patternProperties")
"""With one of these, somebody has said which other properties there may be."""
DECIDED = 1
"""The bit of a part's set that says so; the others stand for names."""

Schema = Mapping[str, Any]
Node = TypeVar("Node", bound=Hashable)


class PropertyNames:
    """Of all parts of one schema at once: a set is the bits of a number, joined along each reference once."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._names: list[str] = []
        self._bits: dict[str, int] = {}
        parts = _parts_of(root)
        members = {id(part): [id(one) for one in combined(part, root) if isinstance(one, Mapping)] for part in parts}
        self._sets = join_sets({id(part): self._own_set(part) for part in parts}, members)

    def is_decided(self, part: Schema) -> bool:
        """Whether a part, or one that describes the same object, says which other properties there may be."""
        return bool(self._sets[id(part)] & DECIDED)

    def of(self, part: Schema) -> Iterator[str]:
        """The names in a part and in those that describe the same object."""
        found = self._sets[id(part)] & ~DECIDED
        while found:
            lowest = found & -found
            yield self._names[lowest.bit_length() - 2]
            found ^= lowest

    def _own_set(self, part: Schema) -> int:
        properties, required = part.get("properties"), part.get("required")
        is_decided = any(keyword in part for keyword in DECIDING) or _leads_away(part)
        found = DECIDED if is_decided else 0
        if isinstance(properties, Mapping) and properties:
            for name in (*properties, *(required if isinstance(required, list) else ())):
                found |= self._bit_of(name)
        return found

    def _bit_of(self, name: str) -> int:
        if name not in self._bits:
            self._names.append(name)
            self._bits[name] = DECIDED << len(self._names)
        return self._bits[name]


def _leads_away(part: Schema) -> bool:
    """Whether what its `$ref` leads to is not known: by a name (`$anchor`), or in another document."""
    reference = part.get("$ref")
    return isinstance(reference, str) and reference != "#" and not reference.startswith("#/")


def _parts_of(root: Schema) -> list[Schema]:
    """Each part once: those that stand in the schema, and what else references lead to, which may be no schemas."""
    waiting: list[Any] = [root]
    found: dict[int, Schema] = {}
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping) and id(part) not in found:
            found[id(part)] = part
            waiting += reversed([one for _, one in subschemas(part, "")])
    waiting = [one for part in found.values() for one in combined(part, root)]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping) and id(part) not in found:
            found[id(part)] = part
            waiting += combined(part, root)
    return list(found.values())


def join_sets(own: Mapping[Node, int], members: Mapping[Node, Sequence[Node]]) -> dict[Node, int]:
    """The union of the sets of each node and of all that it leads to, in one pass.

    Source: Sharir 1981: the components of a graph, those first that lead to no others.
    """
    joined: dict[Node, int] = {}
    for start in reversed(_by_their_end(_turned_round(members))):
        component = _new_ones(start, members, joined)
        together = 0
        for node in component:
            together |= own[node]
            for one in members[node]:
                together |= joined.get(one, 0)
        joined.update(dict.fromkeys(component, together))
    return joined


def _turned_round(members: Mapping[Node, Sequence[Node]]) -> dict[Node, list[Node]]:
    found: dict[Node, list[Node]] = {node: [] for node in members}
    for node, ones in members.items():
        for one in ones:
            found[one].append(node)
    return found


def _by_their_end(edges: Mapping[Node, Sequence[Node]]) -> list[Node]:
    """The nodes in the order in which a walk, depth first, has done with them."""
    order: list[Node] = []
    seen: set[Node] = set()
    waiting = [(node, False) for node in edges]
    while waiting:
        node, is_done = waiting.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += ((one, False) for one in edges[node])
    return order


def _new_ones(start: Node, edges: Mapping[Node, Iterable[Node]], known: Mapping[Node, int]) -> set[Node]:
    """What can be reached from a node and is not known yet."""
    found: set[Node] = set()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node not in known and node not in found:
            found.add(node)
            waiting += edges[node]
    return found
