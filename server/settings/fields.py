"""Every setting as data: its name, type and default and what it means, from the fields of the tree."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from msgspec import Meta

from models.bounds import Bounds, find_bounds
from server.settings.config import ServerConfig

ENV_PREFIX = "FENHE_"

_WITHOUT_SECTION = ("limits", "engine")
"""Sections whose flags do not carry the section's name."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Field:
    """`hint` is the type as it is written, with bounds; `kind` the same without them and without None. `unset` says in
    words what the default is where its value does not."""

    name: str
    hint: Any
    kind: Any
    default: Any
    meaning: str
    unset: str | None

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def is_table(self) -> bool:
        return get_origin(self.kind) is dict

    @property
    def bounds(self) -> Bounds | None:
        return find_bounds(self.hint)


def find_fields(kind: type[Any] = ServerConfig, prefix: str = "") -> tuple[Field, ...]:
    """Every setting that is one value, or a table of them, in the order of the tree."""
    return tuple(_walk(kind, prefix))


def _walk(kind: type[Any], prefix: str) -> Iterator[Field]:
    hints, defaults = get_type_hints(kind, include_extras=True), kind()
    for part in dataclasses.fields(kind):
        hint, name = hints[part.name], f"{prefix}{part.name}"
        if is_section(hint):
            yield from _walk(bare(hint), f"{name}.")
            continue
        meta = _meaning(hint)
        yield Field(
            name=name,
            hint=hint,
            kind=bare(hint),
            default=getattr(defaults, part.name),
            meaning=meta.description or "",
            unset=(meta.extra or {}).get("unset"),
        )


def find_sections(kind: type[Any] = ServerConfig) -> dict[str, str]:
    """What every section is about, by its name."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: _meaning(hint).description or "" for name, hint in hints.items() if is_section(hint)}


def setting_names(kind: type[Any] = ServerConfig, prefix: str = "", *, with_tables: bool = False) -> list[str]:
    """Dotted names, in the order of the tree."""
    return [one.name for one in find_fields(kind, prefix) if with_tables or not one.is_table]


def flag_of(name: str) -> str:
    """`limits.max_body_bytes` is `--max-body-bytes`, `router.fast` is `--router-fast`."""
    section, _, last = name.rpartition(".")
    return "--" + (last if section in _WITHOUT_SECTION else name.replace(".", "-")).replace("_", "-")


def variable_of(name: str) -> str:
    """`limits.max_body_bytes` is `FENHE_LIMITS__MAX_BODY_BYTES`."""
    return ENV_PREFIX + name.replace(".", "__").upper()


def bare(hint: Any) -> Any:
    """A type without bounds, meaning and None."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return next(bare(inner) for inner in get_args(hint) if inner is not NoneType)
    return hint


def is_section(hint: Any) -> bool:
    kind = bare(hint)
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _meaning(hint: Any) -> Meta:
    notes = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Meta)]
    return next((note for note in notes if note.description is not None), Meta())
