"""What every bench reports alike: where it ran, with what, how numbers look, and the form of its JSON."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec


def report_progress(line: str) -> None:
    """To stderr, so that stdout has the figures alone."""
    print(line, file=sys.stderr, flush=True)


def describe_setting(machine: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    """The lines that say where and with what a bench ran."""
    return [
        "machine   " + ", ".join(f"{key} {_plain(value)}" for key, value in machine.items()),
        "versions  " + ", ".join(f"{name} {value}" for name, value in versions.items()),
    ]


def list_notes(notes: Sequence[str]) -> list[str]:
    return ["", "notes", *(f"  {note}" for note in notes)] if notes else []


def list_formulas(formulas: Mapping[str, str], how_combined: str) -> list[str]:
    return ["", f"formulas ({how_combined})", *(f"  {name}: {formula}" for name, formula in formulas.items())]


def show_number(value: float, digits: int) -> str:
    """At least three significant digits, without an exponent."""
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    if abs(value) >= 100:
        return f"{value:.1f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-4 else f"{value:.6f}"


def show_spread(values: Collection[float], digits: int) -> str:
    """The lowest and the highest."""
    return f"({show_number(min(values), digits)} .. {show_number(max(values), digits)})"


def fill_document(
    medians: Mapping[str, float],
    rounds: Mapping[str, Sequence[float]],
    formulas: Mapping[str, str],
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The JSON form of any bench of ours: medians under `figures`, the rounds behind them under `rounds`."""
    return {
        "machine": dict(machine),
        "versions": dict(versions),
        "figures": {name: round(value, 6) for name, value in medians.items()},
        "rounds": {name: [round(value, 6) for value in values] for name, values in rounds.items()},
        "notes": list(notes),
        "formulas": dict(formulas),
    }


def write_document(file: Path | None, document: Mapping[str, Any]) -> None:
    """Nowhere when no file was named."""
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
