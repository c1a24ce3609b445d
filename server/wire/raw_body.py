"""Prepares a body that its typed decoder refused: what is ignored is left out and recorded, other shapes become ours.

Keys are ignored by where they stand: in a struct that is a `LooseBody` all that it does not know, in any other those
whose value is null. What is left is refused by the decoder, which names it.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from server.wire.base import LooseBody, RequestBody
from server.wire.ignored import Ignored

Raw = dict[str, Any]
Adapter = Callable[[Raw, str, Ignored], Raw]
"""Turns a shape that clients or other servers use into that of a struct. Its arguments: the object, its place, and
what was ignored. It changes nothing in place."""


def prepared(raw: Raw, kind: type[RequestBody], ignored: Ignored, adapters: Mapping[type[RequestBody], Adapter]) -> Raw:
    """The body as its struct may be decoded from it. Raises: what the adapters raise."""
    return _Preparation(ignored, adapters).struct(raw, kind, "")


class _Preparation:
    def __init__(self, ignored: Ignored, adapters: Mapping[type[RequestBody], Adapter]) -> None:
        self._ignored = ignored
        self._adapters = adapters

    def struct(self, raw: Raw, kind: type[RequestBody], place: str) -> Raw:
        adapter = self._adapters.get(kind)
        if adapter is not None:
            raw = adapter(raw, place, self._ignored)
        hints, is_loose = _hints(kind), issubclass(kind, LooseBody)
        tag = kind.__struct_config__.tag_field
        kept = {}
        for name, value in raw.items():
            if name in hints:
                kept[name] = self._value(value, hints[name], f"{place}.{name}" if place else name)
            elif name != tag and (value is None or is_loose):
                self._ignored.add(name, place)
            else:
                kept[name] = value
        return kept

    def _value(self, value: object, hint: Any, place: str) -> object:
        if isinstance(value, dict):
            kind = _struct_for(value, hint)
            return value if kind is None else self.struct(value, kind, place)
        if isinstance(value, list):
            item = _item(hint)
            if item is not None:
                return [self._value(one, item, f"{place}[{index}]") for index, one in enumerate(value)]
        return value


@functools.cache
def _hints(kind: type[RequestBody]) -> Mapping[str, Any]:
    """The types of a struct's fields, by the names that they have in JSON."""
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


@functools.cache
def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union, without annotations."""
    if get_origin(hint) is Annotated:
        return _parts(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(part for one in get_args(hint) for part in _parts(one))
    return (hint,)


@functools.cache
def _structs(hint: Any) -> tuple[type[RequestBody], ...]:
    return tuple(part for part in _parts(hint) if isinstance(part, type) and issubclass(part, RequestBody))


@functools.cache
def _item(hint: Any) -> Any:
    """The type of a list's items; None where there is no struct in them."""
    for part in _parts(hint):
        if get_origin(part) is list:
            inner = get_args(part)[0]
            return inner if _structs(inner) or _item(inner) is not None else None
    return None


def _struct_for(raw: Raw, hint: Any) -> type[RequestBody] | None:
    """The struct that an object of this type is: of several, the one whose tag it has."""
    kinds = _structs(hint)
    if len(kinds) == 1:
        return kinds[0]
    return next((kind for kind in kinds if _has_tag(raw, kind)), None)


def _has_tag(raw: Raw, kind: type[RequestBody]) -> bool:
    config = kind.__struct_config__
    return config.tag_field is not None and raw.get(config.tag_field) == config.tag
