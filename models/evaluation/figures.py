"""What a path keeps of the full path, by every kind of text and answer: values, 95 % intervals, and how many rows.

Everything compares a path with the full path and the exact head on the same texts; for those two alike every ratio is
exactly 1. Rows are resampled in pairs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from models.evaluation.blind import are_short
from models.evaluation.measures import MIN_ROWS
from models.evaluation.resampling import Double, interval, resampled_sums
from models.evaluation.rows import OWN_WORDS
from models.evaluation.scores import AnswerScore, PairScore, RowScore, Scores, TextScore
from models.evaluation.table import CHOICE, INFORMATION, Measure
from models.evaluation.texts import GENERAL

Likely = RowScore | TextScore
Combine = Callable[[Double], Double]
"""A figure from sums of columns. Shapes: [columns, resamples] to [resamples]."""

S = TypeVar("S", RowScore, TextScore, PairScore)


@dataclass(slots=True, kw_only=True, frozen=True)
class Figure:
    """One figure with its 95 % interval, over so many rows."""

    value: float
    low: float
    high: float
    rows: int


Figures = Mapping[str, Figure]
"""Figures by the names they have in `PathFigures`; one that could not be measured is not among them."""


def figures_of(mine: Scores, full: Scores, measures: Sequence[Measure], seed: int) -> dict[str, Figures]:
    """The figures of every task that has rows or human text. `measures` are those of these very scores."""
    return {task: _task_figures(task, mine, full, measures, seed) for task in _tasks(mine)}


def _tasks(scores: Scores) -> list[str]:
    """General text alone makes no task: it is what every task is measured on besides."""
    plain = (text.task for text in scores.plain if text.task != GENERAL)
    return list(dict.fromkeys([*(row.task for row in scores.rows), *plain]))


def _task_figures(task: str, mine: Scores, full: Scores, measures: Sequence[Measure], seed: int) -> Figures:
    rows = _paired(mine.rows, full.rows, lambda row: row.task == task)
    own = [pair for pair in rows if pair[0].dataset == OWN_WORDS]
    compared = [row for row, _ in own if row.full_kl is not None]
    found = {
        "perplexity_ratio_own": _perplexity_ratio(own, f"own {task}", seed),
        "perplexity_ratio_human": _perplexity_ratio(_human(task, mine, full), f"human {task}", seed),
        "perplexity_ratio_plain": _perplexity_ratio(_plain(GENERAL, mine, full), f"human {GENERAL}", seed),
        "kl": _kl(compared, f"own {task}", seed),
        "agreement": _agreement(compared, f"own {task}", seed),
        "information_kept": _kept(measures, task, INFORMATION),
        "choice_kept": _kept(measures, task, CHOICE),
        "accuracy_kept": _accuracy_kept(rows, measures, task, seed),
        "blimp_kept": _pairs_kept(_paired(mine.pairs, full.pairs), seed),
        **_answers(task, mine.answers, full.answers, seed),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _paired(
    mine: Iterable[S], full: Iterable[S], is_wanted: Callable[[S], bool] = lambda score: True
) -> list[tuple[S, S]]:
    return [(one, other) for one, other in zip(mine, full, strict=True) if is_wanted(one)]


def _plain(task: str, mine: Scores, full: Scores) -> Sequence[tuple[Likely, Likely]]:
    return _paired(mine.plain, full.plain, lambda text: text.task == task)


def _human(task: str, mine: Scores, full: Scores) -> Sequence[tuple[Likely, Likely]]:
    """Plain text of the task; where there is none, the reference answers of those datasets whose answers are long."""
    plain = _plain(task, mine, full)
    if plain:
        return plain
    lengths: dict[str, list[int]] = {}
    for row in mine.rows:
        if row.task == task and row.dataset != OWN_WORDS:
            lengths.setdefault(row.dataset, []).append(row.num_tokens)
    long = {dataset for dataset, counts in lengths.items() if not are_short(counts)}
    return _paired(mine.rows, full.rows, lambda row: row.task == task and row.dataset in long)


def _figure(columns: Sequence[Sequence[float]], combine: Combine, name: str, seed: int) -> Figure | None:
    """None without rows. Shapes: columns [columns, rows]."""
    if not columns or not columns[0]:
        return None
    values = np.array(columns, np.float64)
    value = float(combine(values.sum(axis=1, keepdims=True))[0])
    low, high = interval(combine(resampled_sums(values, name, seed)), value)
    return Figure(value=value, low=low, high=high, rows=values.shape[1])


def _perplexity_ratio(pairs: Sequence[tuple[Likely, Likely]], name: str, seed: int) -> Figure | None:
    columns = [
        [one.nats for one, _ in pairs],
        [other.nats for _, other in pairs],
        [float(one.num_tokens) for one, _ in pairs],
    ]
    return _figure(columns, lambda sums: np.exp((sums[0] - sums[1]) / sums[2]), name, seed)


def _kl(rows: Sequence[RowScore], name: str, seed: int) -> Figure | None:
    columns = [[row.full_kl or 0.0 for row in rows], [float(row.num_tokens) for row in rows]]
    return _figure(columns, lambda sums: sums[0] / sums[1], name, seed)


def _agreement(rows: Sequence[RowScore], name: str, seed: int) -> Figure | None:
    columns = [[float(row.num_full_agreed or 0) for row in rows], [float(row.num_tokens) for row in rows]]
    return _figure(columns, lambda sums: sums[0] / sums[1], name, seed)


def _pairs_kept(pairs: Sequence[tuple[PairScore, PairScore]], seed: int) -> Figure | None:
    return _right_kept([(one.is_right, other.is_right) for one, other in pairs], "pairs", seed)


def _right_kept(right: Sequence[tuple[float, float]], name: str, seed: int) -> Figure | None:
    """What is right over what the full path has right; nothing can be said where that has none right."""
    columns = [[mine for mine, _ in right], [full for _, full in right]]
    if not sum(columns[1]):
        return None
    return _figure(columns, lambda sums: _ratio(sums[0], sums[1]), name, seed)


def _ratio(above: Double, below: Double) -> Double:
    """Infinite, or 1 where both are equal, where there is nothing below."""
    missing: Double = np.where(above == below, 1.0, np.inf)
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), missing)


def _kept(measures: Sequence[Measure], task: str, kind: str) -> Figure | None:
    """The ratio of the measure with most rows of those in which the full path is clearly above chance."""
    able = [one for one in _measures(measures, task, kind) if one.n >= MIN_ROWS and one.is_above_chance]
    if not able:
        return None
    best = max(able, key=lambda one: one.n)
    return Figure(value=best.ratio, low=best.low, high=best.high, rows=best.n)


def _accuracy_kept(
    rows: Sequence[tuple[RowScore, RowScore]], measures: Sequence[Measure], task: str, seed: int
) -> Figure | None:
    """Of the dataset in which the full path's choice is clearly above chance; where there is none, of the largest."""
    choices = _measures(measures, task, CHOICE)
    if not choices:
        return None
    best = max(choices, key=lambda one: (one.is_above_chance, one.n))
    dataset = best.name.removesuffix(f"_{CHOICE}")
    right = [(one.share_right, other.share_right) for one, other in rows if one.dataset == dataset and one.choice_nats]
    return _right_kept(right, dataset, seed)


def _measures(measures: Sequence[Measure], task: str, kind: str) -> list[Measure]:
    own = f"{OWN_WORDS}_"
    return [one for one in measures if one.task == task and one.kind == kind and not one.name.startswith(own)]


def _answers(
    task: str, mine: Sequence[AnswerScore], full: Sequence[AnswerScore], seed: int
) -> dict[str, Figure | None]:
    """Both sides' answers to those prompts that both have answered."""
    by_prompt = {answer.prompt: answer for answer in full if answer.task == task}
    pairs = [(one, by_prompt[one.prompt]) for one in mine if one.task == task and one.prompt in by_prompt]
    nats = [[answer.nats for answer in side] for side in zip(*pairs, strict=True)]
    tokens = [[float(answer.num_tokens) for answer in side] for side in zip(*pairs, strict=True)]
    ngrams = [[float(answer.num_ngrams) for answer in side] for side in zip(*pairs, strict=True)]
    repeated = [[float(answer.num_repeated) for answer in side] for side in zip(*pairs, strict=True)]
    return {
        "rescored_nats_ratio": _figure([*nats, *tokens], _rates_ratio, f"answers {task}", seed),
        "repetition_ratio": _figure([*repeated, *ngrams], _repetition_ratio, f"answers {task}", seed),
    }


def _rates_ratio(sums: Double) -> Double:
    """(a / c) / (b / d)"""
    return _ratio(sums[0] * sums[3], sums[1] * sums[2])


def _repetition_ratio(sums: Double) -> Double:
    """The same, with one run that is repeated added on both sides: a full path that never repeats itself would make
    every ratio infinite."""
    return _rates_ratio(sums + 1.0)
