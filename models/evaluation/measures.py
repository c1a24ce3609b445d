"""From scores to measures: likelihood, choice and information of every dataset, and which of them count.

A measure compares a path with a base on the same rows. `ratio` is 1.0 where they are equal and less where the path is
worse: for a likelihood the base's nats per token over the path's, for a choice and for information what the path has
above chance over what the base has.

Which count towards what is kept of a task, decided for every dataset by the base alone:

1. a choice that most rows have, when the base is clearly above chance;
2. a likelihood, when the answers are long: that of short ones is mostly their form;
3. for short answers information, when the base clearly has some and no choice counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from models.evaluation.blind import are_short
from models.evaluation.resampling import Double, divided, interval, proportion_interval, resampled_ratios
from models.evaluation.rows import OWN_WORDS
from models.evaluation.scores import RowScore
from models.evaluation.table import CHOICE, INFORMATION, LIKELIHOOD, Measure

CLEAR_SHARE = 2 / 3
"""Clearly above chance: the low end of the interval has at least this share of what the figure itself is above it."""
MIN_ROWS = 20
"""The fewest rows of a choice or of information: resampling fewer says nothing about their spread."""

Pairs = Sequence[tuple[RowScore, RowScore]]


@dataclass(slots=True, kw_only=True, frozen=True)
class Sampled:
    """A measure and its ratio in every resample."""

    measure: Measure
    ratios: Double


def measures_of(path: Sequence[RowScore], base: Sequence[RowScore], seed: int) -> list[Sampled]:
    """Every measure of every (task, dataset); `path` and `base` score the same passages in the same order."""
    groups: dict[tuple[str, str], list[tuple[RowScore, RowScore]]] = {}
    for row, other in zip(path, base, strict=True):
        groups.setdefault((row.task, row.dataset), []).append((row, other))
    found = []
    for (task, dataset), group in groups.items():
        sampled = _measures_of_group(group, seed)
        has_others = any(other == task and name != OWN_WORDS for other, name in groups)
        found += [_uncounted(one) for one in sampled] if dataset == OWN_WORDS and has_others else sampled
    return found


def _uncounted(sampled: Sampled) -> Sampled:
    """The full path's own words stand for a task only where it has no dataset."""
    measure = msgspec.structs.replace(sampled.measure, is_counted=False, reason="the task has datasets of its own")
    return replace(sampled, measure=measure)


def is_clear(value: float, low: float, chance: float) -> bool:
    """Whether a figure is far enough above chance for shares of it to be distinguished."""
    return value > chance and low - chance >= CLEAR_SHARE * (value - chance)


def _measures_of_group(group: Pairs, seed: int) -> list[Sampled]:
    is_short = are_short([row.num_tokens for row, _ in group])
    found = [_likelihood(group, seed, is_short=is_short)]
    chosen = [pair for pair in group if pair[0].choice_nats]
    choice = _choice(chosen, len(group), seed) if chosen else None
    if choice is not None:
        found.append(choice)
    informed = [pair for pair in group if pair[0].blind_nats is not None and pair[1].blind_nats is not None]
    if informed:
        found.append(_information(informed, seed, None if choice is None else choice.measure))
    return found


def _likelihood(group: Pairs, seed: int, *, is_short: bool) -> Sampled:
    first = group[0][0]
    num_tokens = sum(row.num_tokens for row, _ in group)
    nats = np.array([[row.nats, other.nats] for row, other in group], np.float64)
    ratios = resampled_ratios(nats[:, 1], nats[:, 0], first.dataset, seed)
    value, base_value = (float(total / num_tokens) for total in nats.sum(axis=0))
    ratio = divided(base_value, value)
    low, high = interval(ratios, ratio)
    measure = Measure(
        name=f"{first.dataset}_{LIKELIHOOD}",
        task=first.task,
        kind=LIKELIHOOD,
        value=value,
        full_value=base_value,
        ratio=ratio,
        low=low,
        high=high,
        n=len(group),
        num_tokens=num_tokens,
        is_counted=not is_short,
        reason="short answers are likely by their form" if is_short else "the answers are long",
    )
    return Sampled(measure=measure, ratios=ratios)


def _choice(pairs: Pairs, num_rows: int, seed: int) -> Sampled:
    first = pairs[0][0]
    right = np.array([[row.share_right, other.share_right] for row, other in pairs], np.float64)
    chances = np.array([1 / len(row.choice_nats) for row, _ in pairs], np.float64)
    above = right - chances[:, None]
    ratios = resampled_ratios(above[:, 0], above[:, 1], first.dataset, seed)
    value, base_value = (float(mean) for mean in right.mean(axis=0))
    chance = float(chances.mean())
    full_low, full_high = proportion_interval(base_value, len(pairs))
    ratio = divided(value - chance, base_value - chance)
    low, high = interval(ratios, ratio)
    is_above = is_clear(base_value, full_low, chance)
    is_enough = len(pairs) >= MIN_ROWS and 2 * len(pairs) >= num_rows
    too_few = f"only {len(pairs)} of {num_rows} rows have choices that fit; half of them, and {MIN_ROWS}, are needed"
    verdict = f"the full path's accuracy {base_value:.3f} is {'' if is_above else 'not '}clearly above {chance:.3f}"
    measure = Measure(
        name=f"{first.dataset}_{CHOICE}",
        task=first.task,
        kind=CHOICE,
        value=value,
        full_value=base_value,
        ratio=ratio,
        low=low,
        high=high,
        n=len(pairs),
        chance=chance,
        full_low=full_low,
        full_high=full_high,
        is_above_chance=is_above,
        is_counted=is_above and is_enough,
        reason=verdict if is_enough else too_few,
    )
    return Sampled(measure=measure, ratios=ratios)


def _information(pairs: Pairs, seed: int, choice: Measure | None) -> Sampled:
    """Source: domain-conditional pointwise mutual information, with another row's question as the premise that gives
    the domain (Holtzman and others 2021, Surface Form Competition)."""
    first = pairs[0][0]
    gains = np.array([[row.information, other.information] for row, other in pairs], np.float64)
    tokens = np.array([row.num_tokens for row, _ in pairs], np.float64)
    ratios = resampled_ratios(gains[:, 0], gains[:, 1], first.dataset, seed)
    value, base_value = (float(total / tokens.sum()) for total in gains.sum(axis=0))
    full_low, full_high = interval(resampled_ratios(gains[:, 1], tokens, first.dataset, seed), base_value)
    ratio = divided(value, base_value)
    low, high = interval(ratios, ratio)
    is_above = len(pairs) >= MIN_ROWS and is_clear(base_value, full_low, 0.0)
    measure = Measure(
        name=f"{first.dataset}_{INFORMATION}",
        task=first.task,
        kind=INFORMATION,
        value=value,
        full_value=base_value,
        ratio=ratio,
        low=low,
        high=high,
        n=len(pairs),
        num_tokens=int(tokens.sum()),
        chance=0.0,
        full_low=full_low,
        full_high=full_high,
        is_above_chance=is_above,
        is_counted=is_above and not (choice is not None and choice.is_counted),
        reason=_why_informed(is_above, len(pairs), choice),
    )
    return Sampled(measure=measure, ratios=ratios)


def _why_informed(is_above: bool, num_rows: int, choice: Measure | None) -> str:
    if num_rows < MIN_ROWS:
        return f"{num_rows} rows are too few, {MIN_ROWS} are the least"
    if choice is not None and choice.is_counted:
        return "the choice counts"
    if not is_above:
        return "the question gives the full path too little to measure"
    return "short answers without choices" if choice is None else choice.reason
