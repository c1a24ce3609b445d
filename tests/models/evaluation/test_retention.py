"""What is kept of a task, from measures by hand."""

import pytest

from models.evaluation.measures import measures_of
from models.evaluation.retention import retention_of, task_retentions
from models.evaluation.scores import RowScore


def text(nats: float, dataset: str) -> RowScore:
    return RowScore(dataset=dataset, task="legal", num_tokens=20, nats=nats, kl=0.0, num_agreed=0)


def fact(nats: float, blind: float, *choices: float) -> RowScore:
    return RowScore(
        dataset="trivia",
        task="fact",
        num_tokens=2,
        nats=nats,
        kl=0.0,
        num_agreed=0,
        choice_nats=choices,
        blind_nats=blind,
    )


def test_retention_is_the_mean_of_measures_that_count_one_at_most() -> None:
    path = [text(5.0, "a"), text(20.0, "b")]
    base = [text(10.0, "a"), text(10.0, "b")]
    measures, kept = task_retentions(path, base, seed=0)
    assert [measure.ratio for measure in measures] == [2.0, 0.5]
    assert kept["legal"].score == pytest.approx(0.75)
    assert [kept["legal"].low, kept["legal"].high] == pytest.approx([0.75, 0.75])
    assert kept["legal"].measures == ("a_likelihood", "b_likelihood")


def test_a_measure_counts_nothing_at_least() -> None:
    """A path that every question misleads keeps 0, not less."""
    kept = retention_of(measures_of([fact(9.0, 5.0)] * 30, [fact(2.0, 6.0)] * 30, seed=0))["fact"]
    assert (kept.score, kept.low, kept.high) == (0.0, 0.0, 0.0)


def test_facts_count_by_information_where_the_choice_is_near_chance_and_it_says_why() -> None:
    """Right half of the time of two: chance. The question takes 4 nats off in the base and 1 in the path."""
    base = [fact(2.0, 6.0, 1.0, 2.0), fact(2.0, 6.0, 2.0, 1.0)] * 20
    path = [fact(5.0, 6.0, 1.0, 2.0), fact(5.0, 6.0, 2.0, 1.0)] * 20
    kept = retention_of(measures_of(path, base, seed=0))["fact"]
    assert kept.score == pytest.approx(0.25)
    assert kept.measures == ("trivia_information",)
    assert kept.reason == "trivia_information: the full path's accuracy 0.500 is not clearly above 0.500"
    same = retention_of(measures_of(base, base, seed=0))["fact"]
    assert (same.score, same.low, same.high) == (1.0, 1.0, 1.0)


def test_a_task_without_a_measure_that_counts_is_left_out() -> None:
    few = [fact(2.0, 6.0, 1.0, 2.0)] * 3
    assert retention_of(measures_of(few, few, seed=0)) == {}
