"""What is drawn is what the parameters allow, with the probabilities they imply, and nothing else matters."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.drawing import PlainChooser, draw, uniform
from engines.sampler import Sampler, adjust, adjusted_tokens
from engines.sequence import (
    PLAIN_CHOOSING_S,
    SPREAD_FROM,
    Bias,
    GenerationRequest,
    LogitBias,
    SamplingParams,
    Sequence,
)
from engines.text import TextStream

Logits = np.ndarray[Any, np.dtype[np.float32]]


def sequence(prompt: tuple[int, ...] = (1,), answer: tuple[int, ...] = (), **params: Any) -> Sequence:
    sampling = SamplingParams(max_tokens=10, **params)
    request = GenerationRequest(id="s", prompt_token_ids=prompt, path="full", sampling=sampling)
    return Sequence(
        request=request,
        path="full",
        seed=params.get("seed") or 0,
        token_ids=[*prompt, *answer],
        num_prompt_tokens=len(prompt),
        text=TextStream(lambda _: b"", ()),
    )


def sampler() -> Sampler:
    return Sampler(lambda token_id: bytes([token_id % 256]))


def logits_of(*probabilities: float) -> Logits:
    return np.log(np.array(probabilities, np.float32))


def frequencies(logits: Logits, num_draws: int = 4000, **params: Any) -> list[float]:
    """Shares of tokens over evenly spread draws, so that no luck is involved."""
    settings = SamplingParams(max_tokens=1, **params)
    tokens = [draw(logits, settings, (index + 0.5) / num_draws) for index in range(num_draws)]
    return [tokens.count(token) / num_draws for token in range(len(logits))]


def test_sampler_takes_the_largest_logit_when_greedy() -> None:
    logits = np.array([[0, 3, 1], [5, 1, 2]], np.float32)
    sampled = sampler().sample(logits, [sequence(temperature=0.0), sequence(temperature=0.0)])
    assert [token.token_id for token in sampled] == [1, 0]


def endings(*answer: int, **params: Any) -> list[int]:
    """What is chosen where the end tokens 0 and 1 (one of the student, one of the request) are by far the likeliest."""
    logits = np.array([[9, 8, 1, 2]] * 50, np.float32)
    sequences = [
        sequence(answer=answer, stop_token_ids=frozenset({1}), seed=seed, **params) for seed in range(len(logits))
    ]
    sampled = Sampler(lambda _: b"", {0}).sample(logits, sequences)
    return sorted({token.token_id for token in sampled})


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.0, "logit_bias": {0: 100.0, 3: 1.0}}])
def test_sampler_puts_off_end_tokens_when_greedy(params: dict[str, Any]) -> None:
    assert endings(5, min_tokens=2, **params) == [3]
    assert endings(5, 6, min_tokens=2, **params) == [0]


def test_sampler_puts_off_end_tokens_when_drawing() -> None:
    assert endings(min_tokens=1) == [2, 3]
    assert endings(min_tokens=1, top_p=0.5, logit_bias={1: 100.0}) == [3]
    assert {0, 1} <= set(endings())


def test_sampler_s_log_probabilities_are_those_of_all_tokens_also_where_end_tokens_are_put_off() -> None:
    logits = np.array([[9, 8, 1, 2]], np.float32)
    (sampled,) = Sampler(lambda _: b"", {0}).sample(logits, [sequence(temperature=0.0, min_tokens=1, logprobs=1)])
    assert sampled.token_id == 1
    assert sampled.logprob is not None
    assert [other.token_id for other in sampled.logprob.alternatives] == [0]
    assert sampled.logprob.logprob == pytest.approx(8 - np.log(np.exp(logits[0].astype(float)).sum()))


def test_sampler_draws_with_the_probabilities_of_the_softmax() -> None:
    assert frequencies(logits_of(0.5, 0.2, 0.3)) == pytest.approx([0.5, 0.2, 0.3], abs=1e-3)


def test_sampler_temperature_sharpens() -> None:
    squared = np.array([0.25, 0.04, 0.09])
    expected = (squared / squared.sum()).tolist()
    assert frequencies(logits_of(0.5, 0.2, 0.3), temperature=0.5) == pytest.approx(expected, abs=1e-3)


def test_sampler_top_k_keeps_the_k_most_probable() -> None:
    assert frequencies(logits_of(0.5, 0.2, 0.3), top_k=2) == pytest.approx([0.625, 0, 0.375], abs=1e-3)


def test_sampler_top_p_keeps_the_fewest_that_reach_p() -> None:
    assert frequencies(logits_of(0.5, 0.2, 0.3), top_p=0.6) == pytest.approx([0.625, 0, 0.375], abs=1e-3)
    assert frequencies(logits_of(0.5, 0.2, 0.3), top_p=0.49) == [1, 0, 0]


def test_sampler_min_p_is_relative_to_the_most_probable() -> None:
    assert frequencies(logits_of(0.5, 0.2, 0.3), min_p=0.5) == pytest.approx([0.625, 0, 0.375], abs=1e-3)


def test_sampler_top_p_is_exact_over_a_flat_large_vocabulary() -> None:
    logits = np.zeros(50_000, np.float32)
    settings = SamplingParams(max_tokens=1, top_p=0.5)
    assert draw(logits, settings, 0.0) == 0
    assert draw(logits, settings, 1 - 1e-12) == 24_999


@given(st.integers(0, 2**63 - 1), st.floats(0, 1, exclude_max=True))
def test_sampler_draws_from_all_as_a_full_cumulated_sum_would(seed: int, point: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(rng.integers(1, 700)) * 4).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    expected = int(np.searchsorted(np.cumsum(weights), point * weights.sum(), side="right"))
    drawn = draw(logits, SamplingParams(max_tokens=1), point)
    assert abs(drawn - expected) <= (0 if 1e-9 < point < 1 - 1e-9 else 1) or weights[drawn] < 1e-9


@given(
    st.integers(0, 2**63 - 1),
    st.floats(0.05, 8.0),
    st.sampled_from([{"top_p": 0.99}, {"top_p": 0.3}, {"top_k": 7}, {"top_k": 400, "top_p": 0.9}]),
    st.sampled_from([0.0, 1e-6, 0.1, 1.0]),
    st.floats(0.0, 0.999),
)
def test_sampler_filters_as_sorting_everything_would(
    seed: int, scale: float, filters: dict[str, Any], min_p: float, point: float
) -> None:
    logits = (np.random.default_rng(seed).standard_normal(500) * scale).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    kept = np.argsort(-weights, kind="stable")[: filters.get("top_k")]
    kept = kept[weights[kept] >= min_p]
    if "top_p" in filters:
        total = weights[kept].sum() if "top_k" in filters else weights.sum()
        kept = kept[: int(np.searchsorted(np.cumsum(weights[kept]), filters["top_p"] * total)) + 1]
    mass = np.cumsum(weights[kept])
    expected = kept[np.searchsorted(mass, point * mass[-1], side="right")]
    drawn = draw(logits, SamplingParams(max_tokens=1, min_p=min_p, **filters), point)
    assert drawn == expected or abs(mass[kept.tolist().index(drawn)] - point * mass[-1]) < 1e-9


def test_sampler_survives_extreme_temperatures() -> None:
    logits = np.array([10.0, 9.999, -50.0], np.float32)
    assert draw(logits, SamplingParams(max_tokens=1, temperature=1e-6), 0.999) == 0
    assert draw(logits, SamplingParams(max_tokens=1, temperature=1e-6, top_p=0.9, top_k=3), 0.999) == 0


def test_sampler_seed_decides_whatever_else_is_in_the_batch() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 500)).astype(np.float32)
    alone = sampler().sample(rows[3:4], [sequence(seed=42)])
    together = sampler().sample(rows, [sequence(seed=index if index != 3 else 42) for index in range(8)])
    assert together[3] == alone[0]


def test_sampler_uniform_is_the_same_on_every_machine() -> None:
    assert [round(uniform(42, position), 12) for position in range(3)] == [
        0.59611887183,
        0.160365387599,
        0.166397803981,
    ]


def test_sampler_uniform_is_spread_evenly() -> None:
    values = np.array([uniform(seed, position) for seed in range(40) for position in range(250)])
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert counts.sum() == len(values)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_sampler_penalties_weigh_prompt_and_answer_as_specified() -> None:
    row = np.array([2.0, -2.0, 1.0, 1.0], np.float32)
    repeated = adjust(row, sequence(prompt=(0,), answer=(1,), repetition_penalty=2.0))
    assert repeated.tolist() == [1.0, -4.0, 1.0, 1.0]
    counted = adjust(row, sequence(prompt=(0,), answer=(2, 2, 3), presence_penalty=0.5, frequency_penalty=0.25))
    assert counted.tolist() == [2.0, -2.0, 0.0, 0.25]
    assert row.tolist() == [2.0, -2.0, 1.0, 1.0]


def test_sampler_logit_bias_bans_and_forces() -> None:
    logits = np.array([[1.0, 2.0, 3.0]], np.float32)
    assert sampler().sample(logits, [sequence(temperature=0.0, logit_bias={2: -100.0})])[0].token_id == 1
    assert sampler().sample(logits, [sequence(temperature=1.0, logit_bias={0: 100.0})])[0].token_id == 0


@pytest.mark.parametrize("head", ["exact", "cheap"])
@pytest.mark.parametrize(
    "penalties",
    [{"repetition_penalty": 1.7}, {"presence_penalty": 0.5}, {"frequency_penalty": -0.3, "repetition_penalty": 0.8}],
    ids=str,
)
def test_sampler_weighs_a_text_that_grows_as_one_that_is_whole(penalties: dict[str, Any], head: Any) -> None:
    rows = np.random.default_rng(2).standard_normal((300, 90)).astype(np.float32)
    growing = sequence(prompt=(1, 2, 2, 3), temperature=0.0, logit_bias={4: 0.3}, **penalties)
    growing.head = head
    for row in rows:
        whole = sequence(prompt_of(growing), answer_of(growing), **penalties, logit_bias={4: 0.3})
        assert adjust(row, growing).tolist() == adjust(row, whole).tolist()
        assert set(adjusted_tokens(growing).tolist()) == set(adjusted_tokens(whole).tolist())
        exact = row[None].copy()
        growing.token_ids.append(sampler().sample(row[None], [growing], lambda _, exact=exact: exact)[0].token_id)  # type: ignore[misc]


def prompt_of(growing: Sequence) -> tuple[int, ...]:
    return tuple(growing.token_ids[: growing.num_prompt_tokens])


def answer_of(growing: Sequence) -> tuple[int, ...]:
    return tuple(growing.token_ids[growing.num_prompt_tokens :])


class CountedBias(dict[int, float]):
    """Counts how often it is gone through."""

    num_times = 0

    def keys(self) -> Any:
        self.num_times += 1
        return super().keys()

    def items(self) -> Any:
        self.num_times += 1
        return super().items()

    def __iter__(self) -> Any:
        self.num_times += 1
        return super().__iter__()


@pytest.mark.parametrize("head", ["exact", "cheap"])
def test_sampler_goes_through_a_bias_once_and_not_at_every_step(head: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    bias = CountedBias({token: float(token % 5) for token in range(40)})
    biased = sequence(temperature=0.0, logit_bias=bias)
    biased.head = head
    for row in rows:
        expected = int((row + np.arange(40) % 5).argmax())
        sampled = sampler().sample(row[None], [biased], lambda _, row=row: row[None].copy())  # type: ignore[misc]
        assert sampled[0].token_id == expected
        biased.token_ids.append(expected)
    assert bias.num_times == 1


def test_choices_share_the_arrays_of_a_bias() -> None:
    bias = LogitBias(dict.fromkeys(range(40), 1.0))
    first, second = sequence(logit_bias=bias), sequence(logit_bias=bias)
    assert first.bias is second.bias is bias.arrays
    assert bias == dict.fromkeys(range(40), 1.0)


@pytest.mark.parametrize("head", ["exact", "cheap"])
@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.3}])
@pytest.mark.parametrize("num_biased", [SPREAD_FROM - 1, SPREAD_FROM, 3000])
def test_long_bias_gives_the_logits_that_its_tokens_give_one_by_one(
    head: Any, penalties: dict[str, Any], num_biased: int
) -> None:
    rng = np.random.default_rng(num_biased)
    tokens = rng.permutation(3500)[:num_biased]
    bias = LogitBias({int(token): float(rng.integers(-5, 6)) for token in tokens})
    assert (bias.arrays.spread is None) is (num_biased < SPREAD_FROM)
    for point in range(20):
        preview, exact = (rng.standard_normal((1, 4000)).astype(np.float32) for _ in range(2))
        biased = sequence(prompt=(1, 2, 3), temperature=0.0, logit_bias=bias, **penalties)
        biased.head = head
        expected = exact[0].copy() if head == "exact" else preview[0].copy()
        touched = list(bias) + ([1, 2, 3] if penalties else [])
        expected[touched] = exact[0][touched]
        for token in (1, 2, 3) if penalties else ():
            penalty = np.float32(1.3)
            expected[token] = expected[token] / penalty if expected[token] > 0 else expected[token] * penalty
        for token, value in bias.items():
            expected[token] += np.float32(value)
        row = exact if head == "exact" else preview
        sampled = sampler().sample(row, [biased], lambda _, exact=exact: exact.copy())  # type: ignore[misc]
        assert sampled[0].token_id == int(expected.argmax()), point


def test_bias_far_apart_is_not_spread() -> None:
    assert Bias.of({token * 1000: 1.0 for token in range(3000)}).spread is None
    assert Bias.of({token - 1: 1.0 for token in range(3000)}).spread is None
    assert Bias.of({}).ends == ()


def test_sampler_reports_raw_logprobs_in_order() -> None:
    logits = logits_of(0.5, 0.2, 0.3)[None]
    reported = sampler().sample(logits, [sequence(temperature=0.0, logprobs=2, logit_bias={1: 100.0})])[0].logprob
    assert reported is not None
    assert reported.token_id == 1
    assert reported.logprob == pytest.approx(math.log(0.2), abs=1e-6)
    assert [alternative.token_id for alternative in reported.alternatives] == [0, 2]
    assert reported.token_bytes == bytes([1])


def test_sampler_reports_the_chosen_token_alone_with_zero_alternatives() -> None:
    reported = sampler().sample(logits_of(0.5, 0.5)[None], [sequence(logprobs=0)])[0].logprob
    assert reported is not None
    assert reported.alternatives == ()


def test_sampler_refuses_logits_that_are_not_numbers() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        sampler().sample(np.array([[1.0, np.nan]], np.float32), [sequence(temperature=0.0)])


@pytest.mark.parametrize("filters", [{"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 1}])
def test_sampler_survives_penalties_that_overflow(filters: dict[str, Any]) -> None:
    logits = np.array([[3.0, 2.0, 1.0]], np.float32)
    params = {"repetition_penalty": 1e-38, **filters}
    assert sampler().sample(logits, [sequence(prompt=(1,), seed=1, **params)])[0].token_id == 1


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def thread_time(self) -> float:
        return self.now_s

    perf_counter = thread_time


class Slow(PlainChooser):
    """Draws with top-p take a second, others no longer than a plain one may."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def draw(self, logits: Logits, params: SamplingParams, point: float) -> int:
        self._clock.now_s += 1.0 if params.top_p < 1.0 else PLAIN_CHOOSING_S
        return super().draw(logits, params, point)


def test_sampler_notes_what_choosing_costs_beyond_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("engines.sampler.time", clock)
    rows = np.zeros((3, 40), np.float32)
    plain, costly, scored = sequence(), sequence(top_p=0.5), sequence(logprobs=0)
    scored.head = "cheap"

    def exact_logits(places: list[int]) -> Logits:
        clock.now_s += 3.0
        return rows[places]

    for _ in range(2):
        Sampler(lambda _: b"", (), Slow(clock)).sample(rows, [plain, costly, scored], exact_logits)
    found = [one.timings().choosing_s for one in (plain, costly, scored)]
    assert found == pytest.approx([0.0, 2.0 - 2 * PLAIN_CHOOSING_S, 6.0])
    assert scored.choosing_s == pytest.approx(PLAIN_CHOOSING_S)  # rows need no turns for a pass that they share


def test_sampler_shares_a_pass_of_the_exact_head_among_the_rows_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("engines.sampler.time", clock)
    rows = np.zeros((3, 40), np.float32)
    sequences = [sequence(logprobs=0), sequence(logprobs=0), sequence()]
    for one in sequences:
        one.head = "cheap"

    def exact_logits(places: list[int]) -> Logits:
        clock.now_s += 3.0
        return rows[places]

    Sampler(lambda _: b"", ()).sample(rows, sequences, exact_logits)
    assert [one.timings().choosing_s for one in sequences] == pytest.approx([1.5, 1.5, 0.0])
