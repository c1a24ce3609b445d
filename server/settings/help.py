"""The settings as the options of `fenhe serve`, by section: what each means, what it takes and its default."""

import argparse
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from server.settings.fields import Field, find_fields, find_sections, flag_of

ABOUT = (
    "Every setting is also a key of the file and a variable: --max-body-bytes is max_body_bytes under [limits], and "
    "FENHE_LIMITS__MAX_BODY_BYTES. Options win over variables, those over the file."
)
UNITS = {"_bytes": "BYTES", "_s": "SECONDS", "_tokens": "TOKENS"}
KINDS = {bool: "{true,false}", int: "N", float: "X", Path: "PATH"}
SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def add_settings(parser: argparse.ArgumentParser) -> None:
    groups = {"": parser.add_argument_group("settings", "the server")}
    groups |= {section: parser.add_argument_group(f"[{section}]", about) for section, about in find_sections().items()}
    for one in find_fields():
        if not one.is_table:
            text = describe(one).replace("%", "%%")
            groups[one.section].add_argument(flag_of(one.name), dest=one.name, metavar=placeholder(one), help=text)


def describe(setting: Field) -> str:
    """What a setting means, with its default."""
    default = show_default(setting)
    return f"{setting.meaning} (default{' ' if setting.unset is None else ': '}{default})"


def placeholder(setting: Field) -> str:
    """What stands for its value in the help: the choices where there are some, else the unit or the type."""
    if get_origin(setting.kind) is Literal:
        return "{" + ",".join(get_args(setting.kind)) + "}"
    if setting.name == "student":
        return KINDS[Path]
    if get_origin(setting.kind) is tuple:
        return "A,B"
    unit = next((unit for ending, unit in UNITS.items() if setting.name.endswith(ending)), None)
    return unit or KINDS.get(setting.kind, "TEXT")


def show_default(setting: Field) -> str:
    """The default in words where its value would not explain itself, else the value; sizes also in units."""
    if setting.unset is not None:
        return setting.unset
    default: Any = setting.default
    if isinstance(default, bool):
        return str(default).lower()
    if setting.name.endswith("_bytes"):
        bound, unit = next(size for size in SIZES if default >= size[0])
        return f"{default}, {default / bound:g} {unit}"
    return f"{default:g}" if isinstance(default, float) else str(default)
