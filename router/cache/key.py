"""What makes two requests the same: everything about them that can change the answer, hashed.

A new field of `GenerationRequest` or `SamplingParams` is part of the key automatically; one that cannot change the
answer has to be named in `NOT_IN_KEY`.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

import msgspec

from engines.sequence import GenerationRequest
from models.student.manifest import HeadKind

FORMAT = 2
"""Increased whenever keys or values change their meaning, so that entries of older versions are never found."""

NOT_IN_KEY = frozenset({"id", "queued_s", "priority", "needs_exact_head", "sender", "scored_from", "in_background"})
"""Fields of a generation request that cannot change its answer. `needs_exact_head` can, and `Origin.head` has the
result: whoever demands the head that would be used anyway gets the same answer. The last two no client can ask for."""

_encoder = msgspec.msgpack.Encoder()


@dataclass(slots=True, kw_only=True, frozen=True)
class Origin:
    """Who would answer, and for whom. `digest` changes with the student, its precision and the server's version; `head`
    is the one that really chooses the tokens."""

    student: str
    digest: str
    path: str
    head: HeadKind
    tenant: str | None


def cache_key(origin: Origin, requests: Sequence[GenerationRequest]) -> str:
    """`student:path:` and a hash; it reveals nothing of the prompt or the tenant."""
    hashed = hashlib.sha256(_encoder.encode([FORMAT, origin.digest, origin.head, origin.tenant, len(requests)]))
    last_prompt: tuple[int, ...] | None = None
    seen: Seen = {}
    for request in requests:
        is_same = request.prompt_token_ids is last_prompt  # the n choices of a prompt share its tuple
        last_prompt = request.prompt_token_ids
        hashed.update(_encoder.encode([is_same, None if is_same else last_prompt]))
        hashed.update(_encoder.encode(_described(request, seen, NOT_IN_KEY | {"prompt_token_ids"})))
    return f"{key_prefix(origin.student, origin.path)}{hashed.hexdigest()}"


def key_prefix(student: str, path: str | None = None) -> str:
    """What the keys of a student, or of one of its paths, begin with."""
    return f"{student}:" if path is None else f"{student}:{path}:"


def path_of(key: str) -> str:
    """The path that a key names."""
    return key.split(":")[-2]


Seen = dict[int, Any]
"""What maps were described as, by their identity: the choices of a prompt share a `logit_bias`, which may be long."""


def _described(value: Any, seen: Seen, left_out: frozenset[str] = frozenset()) -> Any:
    """A value as plain lists in one order, with the name of every field.

    Raises: TypeError for a type that has no case here, so that no field is left out silently.
    """
    if value is None or isinstance(value, bool | int | float | bytes):
        return value
    if isinstance(value, Enum):
        return [type(value).__name__, value.value]
    if isinstance(value, str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        named = [
            [part.name, _described(getattr(value, part.name), seen)]
            for part in fields(value)
            if part.name not in left_out
        ]
        return [type(value).__name__, named]
    if isinstance(value, msgspec.Struct):
        named = [[name, _described(getattr(value, name), seen)] for name in value.__struct_fields__]
        return [type(value).__name__, named]
    return _described_many(value, seen)


def _in_order(values: Collection[Any]) -> list[Any]:
    """One order for equal collections: their own where they have one, for it is found 50 times as fast."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def _described_many(value: Any, seen: Seen) -> Any:
    if isinstance(value, Mapping):
        if id(value) not in seen:
            items = [[_described(key, seen), _described(value[key], seen)] for key in _in_order(value)]
            seen[id(value)] = ["map", items]
        return seen[id(value)]
    if isinstance(value, Set):
        return ["set", [_described(item, seen) for item in _in_order(value)]]
    if isinstance(value, list | tuple):
        return ["list", [_described(item, seen) for item in value]]
    raise TypeError(f"{type(value).__name__} has no place in a cache key; see router/cache/key.py")
