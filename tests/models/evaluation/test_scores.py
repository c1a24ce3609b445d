"""Measures, intervals and retention on hand-computed scores."""

import math

import pytest

from models.evaluation.scores import (
    RowScore,
    agreement,
    mean_kl,
    measures_of,
    nats_per_token,
    perplexity_ratio,
    proportion_interval,
    retention_of,
    task_retentions,
)


def text(nats: float, tokens: int = 10, task: str = "legal", dataset: str = "heldout") -> RowScore:
    return RowScore(dataset=dataset, task=task, num_tokens=tokens, nats=nats, kl=nats / 2, num_agreed=tokens // 2)


def chosen(*nats: float, task: str = "fact", dataset: str = "trivia") -> RowScore:
    return RowScore(dataset=dataset, task=task, num_tokens=2, nats=4.0, kl=0.0, num_agreed=2, choice_nats=nats)


RIGHT, WRONG = chosen(1.0, 2.0, 3.0, 4.0), chosen(2.0, 1.0, 3.0, 4.0)


def test_figures_count_tokens_and_not_rows() -> None:
    rows = [text(30.0, tokens=10), text(10.0, tokens=30)]
    assert nats_per_token(rows) == pytest.approx(1.0)
    assert mean_kl(rows) == pytest.approx(0.5)
    assert agreement(rows) == pytest.approx(0.5)
    assert perplexity_ratio(rows, [text(20.0, tokens=10), text(10.0, tokens=30)]) == pytest.approx(math.exp(0.25))


def test_the_right_choice_must_be_likelier_than_all_others() -> None:
    assert chosen(1.0, 1.5, 2.0).is_right
    assert not chosen(1.0, 0.5, 2.0).is_right
    assert not chosen(1.0, 1.0, 2.0).is_right


def test_a_likelihood_ratio_is_the_base_over_the_path() -> None:
    (one,) = measures_of([text(20.0), text(30.0)], [text(10.0), text(30.0)], seed=0)
    measure = one.measure
    assert (measure.name, measure.kind, measure.n, measure.num_tokens) == ("heldout_likelihood", "likelihood", 2, 20)
    assert (measure.value, measure.full_value) == (2.5, 2.0)
    assert measure.ratio == pytest.approx(0.8)
    assert measure.low == pytest.approx(0.5)  # all resamples lie between the rows' own ratios
    assert measure.high == pytest.approx(1.0)


def test_a_choice_is_an_accuracy_with_its_chance() -> None:
    path = [RIGHT] * 30 + [WRONG] * 70
    base = [RIGHT] * 60 + [WRONG] * 40
    measure = measures_of(path, base, seed=0)[1].measure
    assert (measure.name, measure.value, measure.full_value, measure.chance) == ("trivia_choice", 0.3, 0.6, 0.25)
    assert measure.ratio == pytest.approx(0.5)
    assert 0.3 < measure.low < 0.5 < measure.high < 0.7
    assert measure.is_above_chance


def test_rows_are_resampled_in_pairs() -> None:
    """A path that is right exactly where the base is keeps everything, with no doubt, however few rows."""
    rows = [RIGHT, WRONG, RIGHT, WRONG, RIGHT]
    measure = measures_of(rows, rows, seed=0)[1].measure
    assert (measure.ratio, measure.low, measure.high) == (1.0, 1.0, 1.0)


def test_a_base_at_chance_is_not_counted() -> None:
    rows = [RIGHT] * 30 + [WRONG] * 70
    sampled = measures_of([WRONG] * 100, rows, seed=0)
    assert [one.measure.is_above_chance for one in sampled] == [True, False]
    assert retention_of(sampled)["fact"].measures == ("trivia_likelihood",)
    assert "fact" not in retention_of(sampled[1:])


def test_retention_is_the_mean_of_measures_that_count_one_at_most() -> None:
    path = [text(5.0, dataset="a"), text(20.0, dataset="b")]
    base = [text(10.0, dataset="a"), text(10.0, dataset="b")]
    measures, kept = task_retentions(path, base, seed=0)
    assert [measure.ratio for measure in measures] == [2.0, 0.5]
    assert kept["legal"].score == pytest.approx(0.75)
    assert [kept["legal"].low, kept["legal"].high] == pytest.approx([0.75, 0.75])


def test_the_seed_decides_the_interval() -> None:
    path, base = [text(float(n)) for n in range(5, 25)], [text(float(n % 7 + 3)) for n in range(20)]
    intervals: dict[int, list[tuple[float, float]]] = {}
    for seed in (1, 1, 2):
        measure = measures_of(path, base, seed)[0].measure
        intervals.setdefault(seed, []).append((measure.low, measure.high))
    assert intervals[1][0] == intervals[1][1]
    assert intervals[1][0] != intervals[2][0]


def test_a_base_that_is_never_right_gives_a_finite_ratio() -> None:
    measure = measures_of([RIGHT, WRONG], [WRONG, WRONG], seed=0)[1].measure
    assert (measure.ratio, measure.is_above_chance) == (1.0, False)


def test_proportion_interval_is_wilsons() -> None:
    low, high = proportion_interval(8, 10)  # the textbook example
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
