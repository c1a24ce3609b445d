"""Turns figures into a table for people and JSON for everything else."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import describe_setting, fill_document, list_formulas, list_notes, show_number, show_spread
from bench.rounds import RoundFigures, medians
from bench.router.figures import FORMULAS
from bench.router.subjects import Subject
from bench.router.texts import CLASSES

TITLE_WIDTH = 18
COLUMN_WIDTH = 20
DIGITS = 3
SPREAD_FIGURES = ("p50_ms", "p99_ms", "p99_2000_ms", "p99_100k_ms")
OTHER_FIGURES = ("batch_per_s", "decide_p50_ms", "decide_p99_ms", "first_decision_ms", "start_ms")
QUALITY_FIGURES = ("macro_en", "macro_zh", "micro", "coverage90_accuracy", "ece", "other_recall", "in_scope_rejected")


def render_table(
    found: RoundFigures,
    subjects: Sequence[Subject],
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    values = medians(found)
    lines = [*describe_setting(machine, versions), ""]
    lines += _time_rows(values, subjects)
    lines += ["", *(_row(name, _per_subject(values, subjects, name)) for name in OTHER_FIGURES)]
    if any(name in values for name in QUALITY_FIGURES):
        lines += ["", _row("on labelled rows", [subject.name for subject in subjects])]
        lines += [_row(name, _per_subject(values, subjects, name)) for name in QUALITY_FIGURES]
    lines += list_notes(notes)
    lines += list_formulas(
        FORMULAS, "within a round, then the median of rounds; in brackets the lowest and highest round"
    )
    lines += [f"  {name} {show_spread(found[name], DIGITS)}" for name in SPREAD_FIGURES]
    return "\n".join(lines)


def make_document(
    found: RoundFigures, machine: Mapping[str, Any], versions: Mapping[str, str], notes: Sequence[str]
) -> dict[str, Any]:
    return fill_document(medians(found), found, FORMULAS, machine, versions, notes)


def _time_rows(values: Mapping[str, float], subjects: Sequence[Subject]) -> list[str]:
    """Median and 99th percentile per subject; a peer's with how many times ours its median is."""
    rows = [_row("ms per decision", [f"{subject.name} p50/p99" for subject in subjects])]
    for length_class in CLASSES:
        cells = []
        for subject in subjects:
            p50, p99 = (values.get(f"{subject.prefix}{name}{length_class.suffix}_ms") for name in ("p50", "p99"))
            ratio = values.get(f"ratio_{subject.prefix.rstrip('_')}{length_class.suffix}")
            times = "" if ratio is None else f" {ratio:.0f}x" if ratio >= 10 else f" {ratio:.1f}x"
            cells.append(
                "-" if p50 is None or p99 is None else f"{show_number(p50, DIGITS)} / {show_number(p99, DIGITS)}{times}"
            )
        rows.append(_row(length_class.title, cells))
    return rows


def _per_subject(values: Mapping[str, float], subjects: Sequence[Subject], name: str) -> list[str]:
    found = [values.get(f"{subject.prefix}{name}") for subject in subjects]
    return ["-" if value is None else show_number(value, DIGITS) for value in found]


def _row(title: str, cells: Sequence[str]) -> str:
    return f"{title:<{TITLE_WIDTH}}  " + "  ".join(f"{cell:>{COLUMN_WIDTH}}" for cell in cells)
