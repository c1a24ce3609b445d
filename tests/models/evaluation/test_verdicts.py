"""Verdicts and the gate, on figures made by hand."""

from typing import Any

import pytest

from models.evaluation.verdicts import GateLimits, gate, verdict_fidelity, verdict_field, with_verdicts, worst
from models.student.manifest import PathFigures, Verdict

GOOD = {
    "perplexity_ratio_own": 1.05,
    "perplexity_ratio_human": 1.04,
    "perplexity_ratio_plain": 1.03,
    "information_kept": 0.98,
    "choice_kept": 0.99,
    "accuracy_kept": 0.97,
    "blimp_kept": 1.0,
}


def figures(task: str = "fact", *, spread: float = 0.01, **changed: Any) -> PathFigures:
    """Good in every figure but those given; intervals are `spread` of the figure to either side unless given."""
    intervals = changed.pop("intervals", {})
    values = {name: value for name, value in (GOOD | changed).items() if value is not None}
    spreads = {name: (value * (1 - spread), value * (1 + spread)) for name, value in values.items()}
    return PathFigures(
        path="a", head="cheap", task=task, variant="int8", language="en", intervals=spreads | intervals, **values
    )


FIDELITY: list[tuple[str, dict[str, Any], Verdict]] = [
    ("fact", {}, "passed"),
    ("fact", {"perplexity_ratio_own": 1.15}, "passed"),
    ("fact", {"perplexity_ratio_human": 1.15}, "passed"),
    ("fact", {"perplexity_ratio_plain": 1.15}, "passed"),
    ("fact", {"perplexity_ratio_own": 1.1501}, "failed"),
    ("fact", {"perplexity_ratio_human": 1.1501}, "failed"),
    ("fact", {"perplexity_ratio_plain": 1.1501}, "failed"),
    ("fact", {"information_kept": 0.95, "choice_kept": 0.95}, "passed"),
    ("fact", {"information_kept": 0.9499}, "failed"),
    ("fact", {"choice_kept": 0.9499}, "failed"),
    # what was not measured
    ("fact", {"perplexity_ratio_own": None}, "undecided"),
    ("fact", {"perplexity_ratio_human": None}, "undecided"),
    ("fact", {"perplexity_ratio_plain": None}, "undecided"),
    ("fact", {"information_kept": None}, "undecided"),
    ("fact", {"choice_kept": None}, "passed"),
    ("legal", {"information_kept": None, "choice_kept": None}, "passed"),
    ("legal", {"information_kept": 0.5}, "failed"),
    ("fact", {"perplexity_ratio_own": None, "perplexity_ratio_human": 1.3}, "failed"),
    # other figures have no say
    ("fact", {"accuracy_kept": 0.1, "blimp_kept": 0.1}, "passed"),
]


@pytest.mark.parametrize(("task", "changed", "verdict"), FIDELITY)
def test_fidelity_of_hand_made_figures(task: str, changed: dict[str, Any], verdict: Verdict) -> None:
    assert verdict_fidelity(figures(task, **changed)) == verdict


FIELD: list[tuple[str, dict[str, Any], Verdict]] = [
    ("fact", {}, "passed"),
    ("fact", {"accuracy_kept": 0.95}, "passed"),
    ("fact", {"accuracy_kept": 0.9499}, "failed"),
    ("fact", {"perplexity_ratio_human": 1.25}, "passed"),
    ("fact", {"perplexity_ratio_human": 1.2501}, "failed"),
    ("fact", {"perplexity_ratio_human": None}, "undecided"),
    # BLiMP takes the place of accuracy only where a task has none
    ("fact", {"accuracy_kept": None}, "undecided"),
    ("math", {"accuracy_kept": None}, "undecided"),
    ("math", {"blimp_kept": 0.5}, "passed"),
    ("legal", {"accuracy_kept": None}, "passed"),
    ("creative", {"accuracy_kept": None, "blimp_kept": 0.95}, "passed"),
    ("general", {"accuracy_kept": None, "blimp_kept": 0.9499}, "failed"),
    ("legal", {"accuracy_kept": None, "blimp_kept": None}, "undecided"),
    ("legal", {"accuracy_kept": 0.9}, "failed"),
    # other figures have no say
    ("fact", {"perplexity_ratio_own": 9.0, "perplexity_ratio_plain": 9.0, "information_kept": 0.1}, "passed"),
]


@pytest.mark.parametrize(("task", "changed", "verdict"), FIELD)
def test_field_of_hand_made_figures(task: str, changed: dict[str, Any], verdict: Verdict) -> None:
    assert verdict_field(figures(task, **changed)) == verdict


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [
        (1.0, (0.95, 1.05), "passed"),
        (1.0, (0.94, 1.061), "undecided"),
        # the figure decides, not an end of its interval
        (1.2, (1.15, 1.26), "passed"),
        (1.26, (1.2, 1.32), "failed"),
        # more rows would not change it: beyond the bar as a whole
        (1.6, (1.26, 2.0), "failed"),
        (1.6, (1.25, 2.0), "undecided"),
        (1.6, (1.24, 2.0), "undecided"),
        (1.2, None, "undecided"),
        (9.0, None, "undecided"),
        (float("nan"), (float("nan"), float("nan")), "failed"),
    ],
)
def test_interval_says_whether_there_were_enough_rows(
    value: float, interval: tuple[float, float] | None, verdict: Verdict
) -> None:
    found = figures(perplexity_ratio_human=value, intervals={"perplexity_ratio_human": interval})
    if interval is None:
        found.intervals.pop("perplexity_ratio_human")
    assert verdict_field(found) == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"), [((0.5, 0.94), "failed"), ((0.5, 0.95), "undecided"), ((-0.2, 0.1), "failed")]
)
def test_interval_below_a_least_share_fails_as_a_whole(interval: tuple[float, float], verdict: Verdict) -> None:
    value = sum(interval) / 2
    assert verdict_fidelity(figures(information_kept=value, intervals={"information_kept": interval})) == verdict


GATE: list[tuple[str, dict[str, Any], Verdict]] = [
    ("legal", {"perplexity_ratio_own": 1.35}, "passed"),
    ("legal", {"perplexity_ratio_own": 1.3501}, "failed"),
    ("creative", {"perplexity_ratio_own": 1.35}, "passed"),
    ("general", {"perplexity_ratio_own": 1.3501}, "failed"),
    ("math", {"perplexity_ratio_own": 1.15}, "passed"),
    ("math", {"perplexity_ratio_own": 1.1501}, "failed"),
    ("legal", {"perplexity_ratio_own": None}, "undecided"),
    ("fact", {"perplexity_ratio_own": None}, "passed"),
    ("fact", {"information_kept": 0.85}, "passed"),
    ("fact", {"information_kept": 0.8499}, "failed"),
    ("fact", {"information_kept": None}, "undecided"),
    ("math", {"information_kept": 0.1}, "passed"),
    ("fact", {"accuracy_kept": 0.5}, "failed"),
    ("legal", {"perplexity_ratio_human": None}, "undecided"),
    ("legal", {"perplexity_ratio_human": None, "perplexity_ratio_own": 2.0}, "failed"),
    # the gate does not ask for fidelity
    ("legal", {"perplexity_ratio_own": 1.3, "perplexity_ratio_human": 1.2, "perplexity_ratio_plain": 2.0}, "passed"),
]


@pytest.mark.parametrize(("task", "changed", "verdict"), GATE)
def test_gate_of_hand_made_figures(task: str, changed: dict[str, Any], verdict: Verdict) -> None:
    assert gate(with_verdicts(figures(task, **changed))) == verdict


def test_gate_limits_are_those_given() -> None:
    strict = GateLimits(max_own_perplexity={"legal": 1.1}, min_information={"legal": 0.9})
    found = with_verdicts(figures("legal", perplexity_ratio_own=1.2))
    assert (gate(found), gate(found, strict)) == ("passed", "failed")
    assert gate(with_verdicts(figures("math", perplexity_ratio_own=5.0)), strict) == "passed"


def test_gate_takes_the_fields_verdict_as_it_stands_in_the_figures() -> None:
    assert gate(figures()) == "undecided"


def test_figures_equal_to_the_full_paths_pass_everything() -> None:
    same = with_verdicts(figures("fact", spread=0.0, **dict.fromkeys(GOOD, 1.0)))
    assert (same.verdict_fidelity, same.verdict_field, gate(same)) == ("passed", "passed", "passed")


def test_worst_verdict_is_that_on_everything_together() -> None:
    assert worst([]) == "passed"
    assert worst(["passed", "undecided"]) == "undecided"
    assert worst(["undecided", "failed", "passed"]) == "failed"
