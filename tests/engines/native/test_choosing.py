"""The compiled library chooses the tokens that numpy chooses, in every instruction set, and leaves it close calls."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.drawing import Chooser, draw
from engines.native.choosing import NativeChooser
from engines.ranking import likeliest
from engines.sampler import Sampler
from engines.sequence import SamplingParams, Sequence
from tests.engines.test_sampler import sequence

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native operators are built on Linux")

Row = np.ndarray[Any, np.dtype[np.float32]]

FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 0.9999999},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1e-30},
    {"min_p": 1.0},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 4000},
    {"top_k": 2**63 - 1},
    {"top_k": 0, "top_p": 0.8},
    {"top_k": 300, "top_p": 0.9},
    {"min_p": 1e-4, "top_p": 0.95},
    {"min_p": 1e-6, "top_k": 2000, "top_p": 0.999},
)


@pytest.fixture(scope="module")
def chooser(library: Path) -> NativeChooser:
    return NativeChooser(library)


def make_row(seed: int, size: int, kind: int) -> Row:
    rng = np.random.default_rng(seed)
    row = rng.standard_normal(size) * rng.uniform(0.01, 6.0)
    if kind == 1:  # many ties
        row = np.round(row)
    elif kind == 2:  # a few far above the rest, and some that were banned
        row[rng.integers(0, size, 20)] += 12.0
        row[rng.integers(0, size, size // 10)] -= 10.0 ** rng.integers(1, 30)
    elif kind == 3:  # two heaps that no even division tells apart
        row = row * 1e-5 + 9.0 * (rng.random(size) < 0.5)
    elif kind == 4:  # as the words of a language
        row = rng.permutation(-1.1 * np.log(np.arange(1, size + 1))) + rng.normal(0.0, 0.5, size)
    elif kind == 5:
        row[rng.random(size) < 0.3] = -np.inf
        row[0] = 0.0
    return row.astype(np.float32)


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 7, 8, 100, 129, 5000, 9001]),
    kind=st.integers(0, 5),
    filters=st.sampled_from(FILTERS),
    temperature=st.sampled_from([1.0, 0.7, 2.0, 0.01, 1e-6]),
    point=st.floats(0.0, 1.0, exclude_max=True) | st.sampled_from([0.0, 0.5, 1 - 2**-53]),
)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_draws_are_those_of_numpy(
    chooser: NativeChooser,
    seed: int,
    size: int,
    kind: int,
    filters: dict[str, Any],
    temperature: float,
    point: float,
) -> None:
    row = make_row(seed, size, kind)
    params = SamplingParams(max_tokens=1, temperature=temperature, **filters)
    assert chooser.draw(row, params, point) == draw(row, params, point)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_hardly_any_draw_is_left_to_numpy(library: Path, filters: dict[str, Any], temperature: float) -> None:
    chooser, rng = NativeChooser(library), np.random.default_rng(5)
    params = SamplingParams(max_tokens=1, temperature=temperature, **filters)
    for number in range(20):
        row = make_row(number, 49_152, 4)
        for point in rng.random(3):
            assert chooser.draw(row, params, float(point)) == draw(row, params, float(point))
    assert chooser.num_unsure <= 1


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_target_beside_a_border_is_left_to_numpy(library: Path, filters: dict[str, Any]) -> None:
    """Where both sides differ by rounding alone, only one of them may decide."""
    chooser = NativeChooser(library)
    row = np.zeros(64, np.float32)  # each token has 1/64, as far as the filters leave it
    params = SamplingParams(max_tokens=1, **filters)
    borders = [number / parts for parts in (64, 61, 50) for number in range(1, parts)]
    for border in borders:
        for point in (np.nextafter(border, 0), border, np.nextafter(border, 1)):
            assert chooser.draw(row, params, float(point)) == draw(row, params, float(point))
    assert chooser.num_unsure > 0 or filters in ({"top_k": 1}, {"top_p": 1e-9})


def test_all_alike_is_left_to_numpy(library: Path) -> None:
    """More equal tokens than are sorted."""
    chooser, row = NativeChooser(library), np.zeros(30_000, np.float32)
    params = SamplingParams(max_tokens=1, top_p=0.5)
    assert [chooser.draw(row, params, point) for point in (0.0, 1 - 1e-12)] == [0, 14_999]
    assert chooser.num_unsure == 2


@pytest.mark.parametrize("size", [1, 5, 128, 3000, 49_152])
@pytest.mark.parametrize("kind", range(5))
def test_likeliest_are_those_of_sorting_everything(chooser: NativeChooser, size: int, kind: int) -> None:
    row = make_row(size, size, kind)
    order = np.lexsort((np.arange(size), -row.astype(np.float64)))
    weights = np.exp(row.astype(np.float64) - row.max())
    for count in (0, 1, 5, 20, 100):
        for found in (chooser.likeliest(row, min(count, size)), likeliest(row, min(count, size))):
            assert found.token_ids == order[:count].tolist()
            assert found.log_total == pytest.approx(float(row.max()) + np.log(weights.sum()), abs=1e-8)


def test_likeliest_of_a_large_vocabulary_are_not_left_to_numpy(library: Path) -> None:
    chooser = NativeChooser(library)
    for number in range(50):
        chooser.likeliest(make_row(number, 49_152, 4), 20)
    assert chooser.num_unsure == 0


PARAMS: tuple[dict[str, Any], ...] = (
    {"logprobs": 3},
    {"top_p": 0.9, "logprobs": 0},
    {"min_p": 1e-30},
    {"logit_bias": {7: 3.0, 90: -100.0}},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 0.0, "logprobs": 20},
    {"min_tokens": 50, "stop_token_ids": frozenset(range(40))},
)


@pytest.mark.parametrize("head", ["exact", "cheap"])
def test_sampler_gives_the_same_texts(chooser: NativeChooser, head: Any) -> None:
    def rows() -> list[Sequence]:
        made = [sequence(prompt=(1, 2, 3), seed=seed, **params) for seed, params in enumerate(PARAMS)]
        for one in made:
            one.head = head
        return made

    plain, compiled, rng = rows(), rows(), np.random.default_rng(11)
    samplers: list[Chooser | None] = [None, chooser]
    for _ in range(40):
        logits, exact = rng.standard_normal((2, len(PARAMS), 3000)).astype(np.float32) * 3
        texts = [
            Sampler(lambda _: b"", {0}, one).sample(logits, made, lambda places, exact=exact: exact[places])  # type: ignore[misc]
            for one, made in zip(samplers, (plain, compiled), strict=True)
        ]
        for expected, found in zip(*texts, strict=True):
            assert found.token_id == expected.token_id
            assert found.took_exact_row == expected.took_exact_row
            if expected.logprob is not None:
                assert found.logprob is not None
                assert found.logprob.logprob == pytest.approx(expected.logprob.logprob, abs=1e-8)
                others = [one.token_id for one in found.logprob.alternatives]
                assert others == [one.token_id for one in expected.logprob.alternatives]
        for made, sampled in zip((plain, compiled), texts, strict=True):
            for row, one in zip(made, sampled, strict=True):
                row.token_ids.append(one.token_id)


def test_row_s_token_does_not_depend_on_those_before_it(chooser: NativeChooser) -> None:
    row, params = make_row(1, 5000, 4), SamplingParams(max_tokens=1, top_p=0.95)
    expected = chooser.draw(row, params, 0.77)
    for size in (3, 9001, 200, 5000):
        chooser.draw(make_row(size, size, 2), SamplingParams(max_tokens=1, min_p=1e-9), 0.5)
        chooser.likeliest(make_row(size, size, 0), 2)
        assert chooser.draw(row, params, 0.77) == expected
