"""Figures from rounds: each is computed within a round, and its figure is the median over rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.distill.ours import OurTimes
from bench.report import describe_setting, fill_document, list_formulas, list_notes
from bench.rounds import RoundFigures, gather, medians
from engines.machine import Description

NAME_WIDTH = 32
FORMULAS = {
    "steps_tokens_per_s": "tokens x exits / our seconds of one epoch, the reading left out",
    "tokens_per_s": "epochs x tokens x exits / (reading + epochs x one epoch's seconds)",
    "reading_tokens_per_s": "tokens / seconds of what comes once: teacher's pass, cache, fitted new exits",
    "peer_tokens_per_s": "tokens x exits / the sum of the peer's seconds of one epoch for each exit",
    "peer_tokens_per_s.*": "tokens / the peer's seconds of one epoch for this exit",
    "ratio_steps": "steps_tokens_per_s / peer_tokens_per_s; higher is better for us",
    "ratio": "tokens_per_s / peer_tokens_per_s; higher is better for us",
}


@dataclass(slots=True, kw_only=True, frozen=True)
class Round:
    """`peer_s` by exit."""

    ours: OurTimes
    peer_s: dict[str, float]


def compute_figures(rounds: Sequence[Round], num_tokens: int, epochs: float) -> RoundFigures:
    """The reading is charged to `epochs` epochs."""
    return gather([_round_figures(one, num_tokens, epochs) for one in rounds])


def _round_figures(one: Round, num_tokens: int, epochs: float) -> dict[str, float]:
    exit_tokens = num_tokens * len(one.peer_s)
    steps = exit_tokens / one.ours.steps_s
    whole = epochs * exit_tokens / (one.ours.reading_s + epochs * one.ours.steps_s)
    peer = exit_tokens / sum(one.peer_s.values())
    return {
        "steps_tokens_per_s": steps,
        "tokens_per_s": whole,
        "reading_tokens_per_s": num_tokens / one.ours.reading_s,
        "peer_tokens_per_s": peer,
        **{f"peer_tokens_per_s.{name}": num_tokens / seconds for name, seconds in one.peer_s.items()},
        "ratio_steps": steps / peer,
        "ratio": whole / peer,
    }


def render_table(found: RoundFigures, machine: Description, versions: dict[str, str], notes: Sequence[str]) -> str:
    lines = [*describe_setting(machine, versions), ""]
    for name, value in medians(found).items():
        lines.append(f"{name:<{NAME_WIDTH}} {value:>10.2f}   ({min(found[name]):.2f} .. {max(found[name]):.2f})")
    lines += list_notes(notes)
    lines += list_formulas(
        FORMULAS, "within a round, then the median of rounds; in brackets the lowest and highest round"
    )
    return "\n".join(lines)


def make_document(
    found: RoundFigures, machine: Description, versions: dict[str, str], notes: Sequence[str]
) -> dict[str, Any]:
    return fill_document(medians(found), found, FORMULAS, machine, versions, notes)
