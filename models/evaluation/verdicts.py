"""What a path's figures on a task amount to: two verdicts, and the gate that requests pass by default.

Pure functions of the figures. A figure is judged in this order:

    not measured, or without an interval            undecided
    its whole interval is beyond the bar            failed: more rows would not change it
    its interval is wider than 5 % either way       undecided: there were too few rows
    otherwise                                       passed or failed by the figure itself, not by an end of the interval

A verdict is failed if one of the figures that it rests on is, else undecided if one of them is, else passed. Undecided
counts as failed wherever something depends on it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from models.student.manifest import PathFigures, Verdict

MAX_HALF_WIDTH = 0.05
"""Of a figure's interval, as a share of the figure."""

FIDELITY_MAX_PERPLEXITY = 1.15
FIDELITY_MIN_KEPT = 0.95
FIELD_MAX_HUMAN_PERPLEXITY = 1.25
FIELD_MIN_KEPT = 0.95

TASKS_WITH_ACCURACY = frozenset({"math", "fact"})
"""They have rows whose answers are right or wrong; elsewhere BLiMP takes their place."""

TASKS_WITH_INFORMATION = frozenset({"fact"})
"""Their short answers are judged by what the question tells about them."""

_ROUNDING = 1e-9


@dataclass(slots=True, kw_only=True, frozen=True)
class GateLimits:
    """What the gate asks for besides the field's verdict, per task; a task that is not named has no such limit."""

    max_own_perplexity: Mapping[str, float] = field(
        default_factory=lambda: {"legal": 1.35, "creative": 1.35, "general": 1.35, "math": 1.15}
    )
    min_information: Mapping[str, float] = field(default_factory=lambda: {"fact": 0.85})


DEFAULT_LIMITS = GateLimits()


class _Bar(NamedTuple):
    """`is_most`: the figure may be at most the limit; otherwise it must be at least that."""

    figure: str
    limit: float
    is_most: bool

    def allows(self, value: float) -> bool:
        return value <= self.limit if self.is_most else value >= self.limit


def verdict_fidelity(figures: PathFigures) -> Verdict:
    """Whether a path is as good as the full path itself.

    Perplexity at most 1.15 times the full path's on its own words, on human text and on plain text; information and
    choice at least 0.95 of the full path's. On facts information must have been measured; apart from that, information
    and choice count only where they were.
    """
    bars = [_at_most(f"perplexity_ratio_{text}", FIDELITY_MAX_PERPLEXITY) for text in ("own", "human", "plain")]
    if figures.information_kept is not None or figures.task in TASKS_WITH_INFORMATION:
        bars.append(_at_least("information_kept", FIDELITY_MIN_KEPT))
    if figures.choice_kept is not None:
        bars.append(_at_least("choice_kept", FIDELITY_MIN_KEPT))
    return _judge(figures, bars)


def verdict_field(figures: PathFigures) -> Verdict:
    """Whether a path counts as good as the full path by the measures that results on pruning are published with.

    At least 0.95 of the full path's raw accuracy, or of its accuracy on BLiMP where the task has no right answers, and
    perplexity on human text at most 1.25 times the full path's.
    """
    has_accuracy = figures.accuracy_kept is not None or figures.task in TASKS_WITH_ACCURACY
    kept = _at_least("accuracy_kept" if has_accuracy else "blimp_kept", FIELD_MIN_KEPT)
    return _judge(figures, [kept, _at_most("perplexity_ratio_human", FIELD_MAX_HUMAN_PERPLEXITY)])


def with_verdicts(figures: PathFigures) -> PathFigures:
    """The figures with both verdicts filled in."""
    return msgspec.structs.replace(
        figures, verdict_fidelity=verdict_fidelity(figures), verdict_field=verdict_field(figures)
    )


def gate(figures: PathFigures, limits: GateLimits = DEFAULT_LIMITS) -> Verdict:
    """Whether requests of a task may take a path unless they ask for more: the field's verdict as the figures have it,
    and the limits of the task."""
    bars = []
    if (most := limits.max_own_perplexity.get(figures.task)) is not None:
        bars.append(_at_most("perplexity_ratio_own", most))
    if (least := limits.min_information.get(figures.task)) is not None:
        bars.append(_at_least("information_kept", least))
    return worst([figures.verdict_field, _judge(figures, bars)])


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on everything together."""
    found = set(verdicts)
    if "failed" in found:
        return "failed"
    return "undecided" if "undecided" in found else "passed"


def _at_most(figure: str, limit: float) -> _Bar:
    return _Bar(figure, limit, is_most=True)


def _at_least(figure: str, limit: float) -> _Bar:
    return _Bar(figure, limit, is_most=False)


def _judge(figures: PathFigures, bars: Iterable[_Bar]) -> Verdict:
    return worst(_judge_figure(figures, bar) for bar in bars)


def _judge_figure(figures: PathFigures, bar: _Bar) -> Verdict:
    value: float | None = getattr(figures, bar.figure)
    interval = figures.intervals.get(bar.figure)
    if value is None or interval is None:
        return "undecided"
    low, high = interval
    if not bar.allows(low) and not bar.allows(high):
        return "failed"
    if not (high - low) / 2 <= MAX_HALF_WIDTH * value + _ROUNDING:
        return "undecided"
    return "passed" if bar.allows(value) else "failed"
