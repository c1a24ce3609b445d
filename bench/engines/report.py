"""Turns figures into a table for people and JSON for everything else."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bench.engines.cases import CASES
from bench.engines.figures import FORMULAS, Figures
from bench.report import describe_setting, fill_document, list_formulas, list_notes, show_number, show_spread

NAME_WIDTH = 44
DIGITS = 4
FIGURES_OF_CASE = {
    "decode_1": ("decode_1_",),
    "decode_8": ("decode_8_",),
    "decode_32": ("decode_32_",),
    "prefill_512": ("prefill_512_",),
    "paths_1": ("paths_1_",),
    "paths_32": ("paths_32_",),
    "http_32": ("http_32_", "server_us_"),
    "stall": ("worst_gap_", "prompt_2000_"),
    "mixed_step": ("mixed_step_",),
    "start_up": ("listening_s", "first_token_", "all_loaded_s"),
    "memory": ("rss_",),
    "cross_entropy": ("cross_entropy.", "ce_vs_"),
}
"""By what the names of a case's figures begin with."""


def render_table(
    figures: Figures,
    cases: Sequence[str],
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    lines = describe_setting(machine, versions)
    for case in cases:
        rows = _rows_of(figures, FIGURES_OF_CASE[case])
        if rows:
            lines += ["", f"{case}: {CASES[case].title}", *rows]
    lines += list_notes(notes)
    lines += list_formulas(
        FORMULAS, "median of repeats per round, then median of rounds; in brackets the lowest and highest"
    )
    return "\n".join(lines)


def make_document(
    figures: Figures, machine: Mapping[str, Any], versions: Mapping[str, str], notes: Sequence[str]
) -> dict[str, Any]:
    rounds = {name: list(values.values()) for name, values in figures.rounds.items()}
    return fill_document(figures.medians, rounds, FORMULAS, machine, versions, notes)


def _rows_of(figures: Figures, prefixes: tuple[str, ...]) -> list[str]:
    medians = figures.medians
    return [
        f"  {name:<{NAME_WIDTH}} {show_number(medians[name], DIGITS):>10}{_show_spread(values.values())}"
        for name, values in figures.rounds.items()
        if name.startswith(prefixes)
    ]


def _show_spread(values: Collection[float]) -> str:
    return "" if min(values) == max(values) else f"   {show_spread(values, DIGITS)}"
