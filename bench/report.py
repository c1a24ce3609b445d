"""What every bench reports alike: where it ran, with what, and the form of its JSON."""

from collections.abc import Mapping, Sequence
from typing import Any


def describe_setting(machine: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    """The lines that say where and with what a bench ran."""
    return [
        "machine   " + ", ".join(f"{key} {_plain(value)}" for key, value in machine.items()),
        "versions  " + ", ".join(f"{name} {value}" for name, value in versions.items()),
    ]


def fill_document(
    medians: Mapping[str, float],
    rounds: Mapping[str, Sequence[float]],
    formulas: Mapping[str, str],
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The JSON form of any bench of ours."""
    return {
        "machine": dict(machine),
        "versions": dict(versions),
        "figures": {name: round(value, 6) for name, value in medians.items()},
        "rounds": {name: [round(value, 6) for value in values] for name, values in rounds.items()},
        "notes": list(notes),
        "formulas": dict(formulas),
    }


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
