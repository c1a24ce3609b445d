"""Reads a workload from TOML or JSON and lists every mistake in it, not only the first."""

import difflib
import json
import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadtest.traffic.workload import Lengths, Workload

SHIPPED = Path(__file__).parents[1] / "workloads"


class WorkloadError(Exception):
    """A workload that cannot be used; `problems` are all that is wrong with it."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))
        self.problems = problems


def shipped_names() -> list[str]:
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def find_workload(name: str) -> Path:
    """A file by its path, or one that ships by its name.

    Raises: WorkloadError.
    """
    file = Path(name) if name.endswith(".toml") or "/" in name else SHIPPED / f"{name}.toml"
    if not file.is_file():
        raise WorkloadError(name, [f"there is no such file; those that ship are {', '.join(shipped_names())}"])
    return file


def read_workload(name: str, changes: Mapping[str, Any] | None = None, names: tuple[str, ...] = ()) -> Workload:
    """`changes` (as in the file, nested) win over the file; `names` are the figures that thresholds may name.

    Raises: WorkloadError.
    """
    file = find_workload(name)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WorkloadError(str(file), [f"it cannot be read: {error}"]) from error
    table = merged({"name": file.stem, **table}, changes or {})
    workload = workload_from(table, str(file), names)
    return _with_trace_beside(workload, file)


def _with_trace_beside(workload: Workload, file: Path) -> Workload:
    """A trace is named as seen from the workload's file."""
    trace = workload.schedule.trace
    if trace is None or Path(trace).is_absolute():
        return workload
    schedule = msgspec.structs.replace(workload.schedule, trace=str(file.parent / trace))
    return msgspec.structs.replace(workload, schedule=schedule)


def merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(table)
    for key, value in changes.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return both


def workload_from(table: Mapping[str, Any], source: str, names: tuple[str, ...] = ()) -> Workload:
    """Raises: WorkloadError with every problem."""
    problems = list(_mistakes(Workload, table, ""))
    if not problems:
        workload = msgspec.convert(table, Workload)
        problems = list(_contradictions(workload, names))
        if not problems:
            return workload
    raise WorkloadError(source, problems)


def as_json(workload: Workload) -> str:
    return json.dumps(msgspec.to_builtins(workload), ensure_ascii=False)


def _mistakes(kind: Any, value: Any, where: str) -> Iterator[str]:
    """Of a value that should be of this type: in each part of it, where it has parts."""
    struct, each = _parts(kind)
    if struct is not None and isinstance(value, Mapping):
        yield from _mistakes_of_table(struct, value, where)
    elif each is not None and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _mistakes(each, inner, _join(where, key))
    elif each is not None and isinstance(value, list):
        for number, inner in enumerate(value, start=1):
            yield from _mistakes(each, inner, f"{where}[{number}]")
    else:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            yield f"{where or 'the file'}: {error}"


def _mistakes_of_table(struct: type[msgspec.Struct], value: Mapping[str, Any], where: str) -> Iterator[str]:
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            yield f"{_join(where, key)}: there is no such key" + (f"; did you mean {near[0]}?" if near else "")
    for name, field in fields.items():
        if name in value:
            yield from _mistakes(field.type, value[name], _join(where, name))
        elif field.required:
            yield f"{_join(where, name)} is missing"


def _parts(kind: Any) -> tuple[type[msgspec.Struct] | None, Any]:
    """The struct that a type is, if it is one (or None), and the struct that its values or elements are, if so."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    structs = [option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)]
    if structs:
        return structs[0], None
    arguments = typing.get_args(kind)
    is_of_structs = typing.get_origin(kind) in (list, dict) and _parts(arguments[-1])[0] is not None
    return None, arguments[-1] if is_of_structs else None


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _contradictions(workload: Workload, names: tuple[str, ...]) -> Iterator[str]:
    yield from _of_schedule(workload)
    for where, lengths in (("prompts.tokens", workload.prompts.tokens), ("answers.tokens", workload.answers.tokens)):
        if not lengths.least <= lengths.median <= lengths.most:
            yield f"{where}: {_spell(lengths)} is not in order: least, median, most"
    for where, weights in (("tasks", workload.prompts.tasks), ("languages", workload.prompts.languages)):
        if not any(weights.values()):
            yield f"prompts.{where}: at least one needs a weight above 0"
    for tenant in workload.tenants:
        if tenant.key_env is not None and tenant.key_env not in os.environ:
            yield f"tenants: the variable {tenant.key_env} with the key of {tenant.name} is not set"
    for name, limit in workload.thresholds.items():
        if names and name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            yield f"thresholds.{name}: there is no such figure" + (f"; near it: {', '.join(near)}" if near else "")
        if limit.least is None and limit.most is None:
            yield f"thresholds.{name}: give least or most"


def _of_schedule(workload: Workload) -> Iterator[str]:
    schedule = workload.schedule
    wanted = {"closed": "concurrency", "trace": "trace"}.get(schedule.kind, "rate")
    for name in ("rate", "concurrency", "trace"):
        is_given = getattr(schedule, name) is not None
        if name == wanted and not is_given:
            yield f"schedule.{name} is missing: a schedule of kind {schedule.kind} needs it"
        if name != wanted and is_given:
            yield f"schedule.{name}: a schedule of kind {schedule.kind} has none"
    if workload.repeats is not None and workload.sessions.turns > 1:
        yield "repeats: sessions of several turns are never repeated; leave out one of the two"


def _spell(lengths: Lengths) -> str:
    return f"{lengths.least}, {lengths.median}, {lengths.most}"
