"""Draws among many tokens are those of the plain algorithm that sorts all of them."""

from typing import Any

import numpy as np
import pytest

from engines.drawing import draw
from engines.ranking import MAX_SORTED, rank
from engines.sequence import SamplingParams

Row = np.ndarray[Any, np.dtype[np.float32]]
NUM_TOKENS = 3 * MAX_SORTED
NUM_ROWS = 400


def draw_plainly(logits: Row, params: SamplingParams, point: float) -> int:
    scaled = (logits.astype(np.float64) - logits.max()) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order])
    kept = order[: params.top_k]
    kept = kept[: max(int((weights[: len(kept)] >= params.min_p).sum()), 1)]
    mass = np.cumsum(weights[: len(kept)])
    if params.top_p < 1.0:
        total = mass[-1] if params.top_k is not None else weights.sum()
        mass = mass[: int(np.searchsorted(mass, params.top_p * total)) + 1]
    index = int(np.searchsorted(mass, point * mass[-1], side="right"))
    return int(kept[min(index, len(mass) - 1)])


def make_row(rng: np.random.Generator, number: int) -> Row:
    row = rng.standard_normal(NUM_TOKENS) * rng.uniform(0.01, 6.0)
    if number % 4 == 1:  # many ties
        row = np.round(row)
    elif number % 4 == 2:  # a few far above the rest, and some that were banned
        row[rng.integers(0, NUM_TOKENS, 20)] += 12.0
        row[rng.integers(0, NUM_TOKENS, 900)] -= 10.0 ** rng.integers(1, 30)
    elif number % 4 == 3:  # two heaps that no even division tells apart
        row = row * 1e-5 + 9.0 * (rng.random(NUM_TOKENS) < 0.5)
    return row.astype(np.float32)


@pytest.mark.parametrize(
    "params",
    [
        {"min_p": 1e-30},
        {"min_p": 1e-3},
        {"top_p": 0.9999999},
        {"top_p": 0.9},
        {"top_p": 0.5, "temperature": 4.0},
        {"top_k": NUM_TOKENS - 5},
        {"top_k": NUM_TOKENS // 2, "top_p": 0.999},
        {"top_k": NUM_TOKENS // 2, "min_p": 1e-9, "top_p": 0.99},
        {"min_p": 1e-30, "top_p": 0.99999, "temperature": 0.3},
        {"top_p": 0.999999, "temperature": 1e-6},
    ],
    ids=str,
)
def test_tokens_are_those_of_sorting_everything(params: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    settings = SamplingParams(max_tokens=1, **params)
    for number in range(NUM_ROWS):
        row, point = make_row(rng, number), float(rng.random() ** rng.choice([1.0, 0.01]))
        assert draw(row, settings, point) == draw_plainly(row, settings, point), number


@pytest.mark.parametrize("params", [{"min_p": 1e-30}, {"top_p": 0.9999999}, {"top_k": 15_000}], ids=str)
def test_only_what_can_be_drawn_is_sorted(params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    argsort, lexsort = np.argsort, np.lexsort

    def count_argsort(values: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(values))
        return argsort(values, *rest, **more)

    def count_lexsort(keys: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(keys[0]))
        return lexsort(keys, *rest, **more)

    monkeypatch.setattr(np, "argsort", count_argsort)
    monkeypatch.setattr(np, "lexsort", count_lexsort)
    row = (np.random.default_rng(1).standard_normal(20_000) * 2).astype(np.float32)
    for point in np.linspace(0, 1, 50, endpoint=False):
        draw(row, SamplingParams(max_tokens=1, **params), float(point))
    assert sizes
    assert max(sizes) <= MAX_SORTED


def test_weights_of_the_first_add_up() -> None:
    rng = np.random.default_rng(3)
    logits = np.round(rng.standard_normal(NUM_TOKENS) * 3, 1)
    weights = np.exp(logits)
    mass = np.cumsum(np.sort(weights)[::-1])
    ranking = rank(logits, weights)
    for count in (1, 2, 100, NUM_TOKENS // 2, NUM_TOKENS):
        assert ranking.mass_of_first(count) == pytest.approx(mass[count - 1])


def test_what_rounding_takes_past_the_end_is_the_last_that_weighs_anything() -> None:
    logits = np.linspace(0.0, -2000.0, NUM_TOKENS)
    weights = np.exp(logits)
    last = int(np.flatnonzero(weights)[-1])
    assert rank(logits, weights).at_mass(2 * weights.sum(), "right").position <= last


def test_logits_beyond_all_numbers_are_ranked_last() -> None:
    logits = np.linspace(0.0, -5.0, NUM_TOKENS)
    logits[::2] = -np.inf
    assert rank(logits, np.exp(logits)).mass_of_first(NUM_TOKENS) == pytest.approx(np.exp(logits).sum())
