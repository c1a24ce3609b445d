"""The page of all settings, docs/settings.md, made from the fields: `python -m server.settings.table`."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from msgspec import Meta

from server.settings.config import StudentConfig
from server.settings.fields import Field, bare, find_fields, find_sections, flag_of, variable_of
from server.settings.help import show_default
from server.settings.suggestions import PATTERNS

HEADER = """# All settings

Made by `python -m server.settings.table > docs/settings.md`; how they work together is in [operations](operations.md).
An option of `fenhe serve` wins over a variable, that over the TOML file, that over the default. `fenhe config schema`
prints the JSON Schema of the file, for editors; `fenhe config check FILE` reports every mistake in one.
"""
COLUMNS = "| setting | default | may be | meaning | option | variable |\n|---|---|---|---|---|---|"
NOUNS = {bool: "`true` or `false`", int: "a whole number", float: "a number", Path: "a path", str: "text"}


def settings_page() -> str:
    return "\n".join([HEADER, *_sections()])


def _sections() -> Iterator[str]:
    yield from _section("The server", "", list(find_fields()))
    yield from _section("`[[student]]`: one of several students", "", list(find_fields(StudentConfig)))
    for section, about in find_sections(StudentConfig).items():
        yield from _section(f"`[student.{section}]`: {about}", section, list(find_fields(StudentConfig)))
    for section, about in find_sections().items():
        yield from _section(f"`[{section}]`: {about}", section, list(find_fields()))


def _section(title: str, section: str, fields: list[Field]) -> Iterator[str]:
    yield f"## {title}"
    yield COLUMNS
    yield from (_row(one, is_option=one in find_fields()) for one in fields if one.section == section)
    yield ""


def _row(setting: Field, *, is_option: bool) -> str:
    has_flag = is_option and not setting.is_table
    cells = [
        f"`{setting.name.rpartition('.')[2]}`",
        show_default(setting),
        describe_values(setting),
        setting.meaning,
        f"`{flag_of(setting.name)}`" if has_flag else "",
        f"`{variable_of(setting.name)}{_variable_end(setting)}`" if is_option else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _variable_end(setting: Field) -> str:
    """What stands for the key of a table in the name of a variable."""
    if not setting.is_table:
        return ""
    return "__TASK__PATH" if bare(get_args(setting.kind)[0]) is str else "__TASK"


def describe_values(setting: Field) -> str:
    """What may be written, in words."""
    if setting.kind == tuple[StudentConfig, ...]:
        return "a path, or tables"
    bounds = "" if setting.bounds is None else f", {setting.bounds}"
    if setting.is_table and isinstance(get_args(setting.kind)[1], UnionType):
        return "a table"
    if setting.is_table:
        keys, values = get_args(setting.kind)
        return f"a table; {_describe_keys(keys)} {_describe_one(values)}{bounds}"
    if get_origin(setting.kind) is tuple:
        return f"a list; each {_describe_one(get_args(setting.kind)[0])}"
    return _describe_one(setting.hint) + bounds


def _describe_keys(kind: Any) -> str:
    return "each" if bare(kind) is str else f"each of {', '.join(_choices(kind))}"


def _describe_one(hint: Any) -> str:
    pattern = next(_patterns(hint), None)
    if pattern is not None:
        return PATTERNS[pattern]
    kind = bare(hint)
    return f"one of {', '.join(_choices(kind))}" if get_origin(kind) is Literal else NOUNS[kind]


def _choices(kind: Any) -> list[str]:
    return [f"`{one}`" for one in get_args(kind)]


def _patterns(hint: Any) -> Iterator[str]:
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Meta) and note.pattern is not None:
            yield note.pattern
    for inner in get_args(hint):
        yield from _patterns(inner)


if __name__ == "__main__":
    print(settings_page(), end="")
