"""Compiled grammars and the memory they hold: those kept for the next request, and those that requests still use."""

import weakref
from collections import OrderedDict
from dataclasses import dataclass

from engines.grammar import Grammar
from engines.schema_loosening import Loosened

Key = tuple[str | None, str]
"""Tenant and text."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Compiled:
    """A grammar, and the places of its schemas that had to be loosened."""

    grammar: Grammar
    num_bytes: int
    loosened: tuple[Loosened, ...] = ()


class Kept:
    """Compiled grammars, those used last, as many as fit."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._found: OrderedDict[Key, Compiled] = OrderedDict()
        self.num_bytes = 0

    def find(self, key: Key) -> Compiled | None:
        compiled = self._found.get(key)
        if compiled is not None:
            self._found.move_to_end(key)
        return compiled

    def add(self, key: Key, compiled: Compiled) -> None:
        old = self._found.pop(key, None)
        self.num_bytes += compiled.num_bytes - (0 if old is None else old.num_bytes)
        self._found[key] = compiled
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._found.popitem(last=False)[1].num_bytes


class Live:
    """What compiled grammars hold, kept or in use, until the last request that follows them is gone."""

    def __init__(self) -> None:
        self._known: list[tuple[weakref.ref[Grammar], str | None, int]] = []

    def add(self, tenant: str | None, compiled: Compiled) -> None:
        self._known.append((weakref.ref(compiled.grammar), tenant, compiled.num_bytes))

    def num_bytes(self) -> int:
        self._forget_dead()
        return sum(num_bytes for _, _, num_bytes in self._known)

    def num_bytes_of(self, tenant: str | None) -> int:
        self._forget_dead()
        return sum(num_bytes for _, whose, num_bytes in self._known if whose == tenant)

    def _forget_dead(self) -> None:
        self._known = [one for one in self._known if one[0]() is not None]
