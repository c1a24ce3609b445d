"""A safetensors file that says what it holds: a plan in its metadata, as JSON, beside the tensors of the plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from models.errors import ConfigError
from models.sources.safetensors_file import SafetensorsFile

Shape = tuple[int, ...]


class Plan(Protocol):
    @property
    def format_version(self) -> int: ...


P = TypeVar("P", bound=Plan)


@dataclass(slots=True, kw_only=True, frozen=True)
class PlanKind(Generic[P]):
    """One kind of file: its plan lies in the metadata under `key`. What errors say: `name` is what the file should be,
    `missing` what to give instead, `remedy` how to make it again.
    """

    key: str
    plan: type[P]
    format_version: int
    name: str
    missing: str
    remedy: str


def read_planned(file: Path, kind: PlanKind[P]) -> tuple[SafetensorsFile, P]:
    """Open a file and read its plan; its tensors stay on disk.

    Raises: ConfigError (no such file, no plan, one of another version), WeightsError (damaged or cut short).
    """
    if not file.is_file():
        raise ConfigError(f"{file} is not there; {kind.missing}")
    stored = SafetensorsFile(file)
    text = stored.metadata.get(kind.key)
    if text is None:
        raise ConfigError(f"{file} is not {kind.name}: it has no plan under {kind.key!r}; {kind.remedy}")
    try:
        plan = msgspec.json.decode(text, type=kind.plan)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: its plan cannot be read: {error}; {kind.remedy}") from error
    if plan.format_version != kind.format_version:
        raise ConfigError(f"{file}: format_version {plan.format_version} is not {kind.format_version}; {kind.remedy}")
    return stored, plan


def tensor_problems(
    stored: SafetensorsFile, expected: Mapping[str, Shape], *, may_have_others: bool = False
) -> list[str]:
    """Which tensors are missing, unknown or misshapen, as sentences; empty when the file has what is expected."""
    tensors, problems = stored.tensors, []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"missing tensors: {', '.join(missing)}")
    if not may_have_others and (unknown := sorted(tensors.keys() - expected.keys())):
        problems.append(f"unknown tensors: {', '.join(unknown)}")
    misshapen = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if misshapen:
        problems.append(f"misshapen tensors: {', '.join(misshapen)}")
    return problems
