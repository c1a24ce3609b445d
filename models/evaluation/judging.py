"""Figures with the verdicts on them: the one place where an evaluation asks for verdicts."""

from collections.abc import Mapping
from typing import Any

from models.evaluation.figures import Figures
from models.evaluation.scores import PathHead
from models.evaluation.table import LANGUAGE, JudgedFigures
from models.evaluation.verdicts import gate, with_verdicts
from models.student.manifest import PathFigures

FIGURE_NAMES = (
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
)


def judged(figures: Mapping[str, Figures], column: PathHead, precision: str) -> dict[str, JudgedFigures]:
    """The figures of every task with both verdicts and what the default gate says."""
    return {task: _judged(task_figures, task, column, precision) for task, task_figures in figures.items()}


def _judged(figures: Figures, task: str, column: PathHead, precision: str) -> JudgedFigures:
    values: dict[str, Any] = {name: figures[name].value if name in figures else None for name in FIGURE_NAMES}
    values["rows"] = {name: figure.rows for name, figure in figures.items()}
    values["intervals"] = {name: (figure.low, figure.high) for name, figure in figures.items()}
    unjudged = PathFigures(
        path=column.path, head=column.head, task=task, variant=precision, language=LANGUAGE, **values
    )
    found = with_verdicts(unjudged)
    return JudgedFigures(
        verdict_fidelity=found.verdict_fidelity, verdict_field=found.verdict_field, gate=gate(found), **values
    )
