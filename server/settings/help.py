"""The settings as the options of `fenhe serve`, by section: what each means, what it takes and its default."""

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from server.settings.config import ServerConfig, flag_of, setting_names
from server.settings.meanings import MEANINGS, SECTIONS

ABOUT = (
    "Every setting is also a key of the file and a variable: --max-body-bytes is max_body_bytes under [limits], and "
    "FENHE_LIMITS__MAX_BODY_BYTES. Options win over variables, those over the file."
)
UNITS = {"_bytes": "BYTES", "_s": "SECONDS", "_tokens": "TOKENS"}
KINDS = {bool: "{true,false}", int: "N", float: "X", Path: "PATH"}
SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def add_settings(parser: argparse.ArgumentParser) -> None:
    for section, about in SECTIONS.items():
        group = parser.add_argument_group(f"[{section}]" if section else "settings", about)
        for name in setting_names():
            if name.rpartition(".")[0] == section:
                text = describe(name).replace("%", "%%")
                group.add_argument(flag_of(name), dest=name, metavar=placeholder(name), help=text)


def describe(name: str) -> str:
    """What a setting means, with its default."""
    meaning = MEANINGS[name]
    if meaning.unset is not None:
        return f"{meaning.text} (default: {meaning.unset})"
    _, default = _look_up(name)
    return f"{meaning.text} (default {_show(default, is_size=name.endswith('_bytes'))})"


def placeholder(name: str) -> str:
    """What stands for its value: the choices where there are some, else the unit or the kind."""
    hint, _ = _look_up(name)
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    if name == "student":
        return KINDS[Path]
    if get_origin(hint) is tuple:
        return "A,B"
    unit = next((unit for ending, unit in UNITS.items() if name.endswith(ending)), None)
    return unit or KINDS.get(hint, "TEXT")


def _look_up(name: str) -> tuple[Any, Any]:
    """The bare type of a setting, and its default."""
    section, _, last = name.rpartition(".")
    return next(_bare(_hints_of(section)[last])), getattr(_defaults(section), last)


@cache
def _hints_of(section: str) -> dict[str, Any]:
    return get_type_hints(type(_defaults(section)))


def _defaults(section: str) -> Any:
    return getattr(ServerConfig(), section) if section else ServerConfig()


def _bare(hint: Any) -> Iterator[Any]:
    """A type without None."""
    if get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from _bare(one)
    elif hint is not NoneType:
        yield hint


def _show(default: Any, *, is_size: bool) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if is_size:
        bound, unit = next(size for size in SIZES if default >= size[0])
        return f"{default}, {default / bound:g} {unit}"
    return f"{default:g}" if isinstance(default, float) else str(default)
