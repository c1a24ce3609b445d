"""What the JSON says of a task."""

import msgspec
import pytest

from models.evaluation.figures import Figure
from models.evaluation.judging import FIGURE_NAMES, judged
from models.evaluation.scores import PathHead
from models.student.manifest import PathFigures, Verdict

KEYS = {
    "verdict_fidelity",
    "verdict_field",
    "gate",
    "perplexity_ratio_own",
    "perplexity_ratio_human",
    "perplexity_ratio_plain",
    "information_kept",
    "choice_kept",
    "accuracy_kept",
    "blimp_kept",
    "rescored_nats_ratio",
    "repetition_ratio",
    "kl",
    "agreement",
    "rows",
    "intervals",
}


def test_a_task_has_exactly_these_keys() -> None:
    figures = {"kl": Figure(value=0.3, low=0.2, high=0.4, rows=7)}
    found = judged({"legal": figures}, PathHead("math", "cheap"), "w8a8")["legal"]
    assert set(msgspec.to_builtins(found)) == KEYS
    assert (found.kl, found.rows, found.intervals) == (0.3, {"kl": 7}, {"kl": (0.2, 0.4)})
    assert found.perplexity_ratio_own is None


def test_the_gate_sees_the_figures_and_the_verdicts_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PathFigures] = []

    def gate(figures: PathFigures) -> Verdict:
        seen.append(figures)
        return "passed"

    monkeypatch.setattr("models.evaluation.verdicts.verdict_fidelity", lambda figures: "failed")
    monkeypatch.setattr("models.evaluation.verdicts.verdict_field", lambda figures: "passed")
    monkeypatch.setattr("models.evaluation.judging.gate", gate)
    figures = {name: Figure(value=1.0, low=0.9, high=1.1, rows=100) for name in FIGURE_NAMES}
    found = judged({"legal": figures}, PathHead("math", "cheap"), "w8a8")["legal"]
    assert (found.verdict_fidelity, found.verdict_field, found.gate) == ("failed", "passed", "passed")
    (one,) = seen
    assert (one.path, one.head, one.task, one.variant, one.language) == ("math", "cheap", "legal", "w8a8", "en")
    assert (one.verdict_fidelity, one.verdict_field, one.blimp_kept) == ("failed", "passed", 1.0)
