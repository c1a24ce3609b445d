"""Figures that are sums over rows, by hand."""

import math
from typing import Any

import pytest

from models.evaluation.scores import RowScore, agreement, mean_kl, nats_per_token, perplexity_ratio


def row(nats: float, tokens: int = 10, **more: Any) -> RowScore:
    return RowScore(
        dataset="d", task="legal", num_tokens=tokens, nats=nats, kl=nats / 2, num_agreed=tokens // 2, **more
    )


def test_figures_count_tokens_and_not_rows() -> None:
    rows = [row(30.0, tokens=10), row(10.0, tokens=30)]
    assert nats_per_token(rows) == pytest.approx(1.0)
    assert mean_kl(rows) == pytest.approx(0.5)
    assert agreement(rows) == pytest.approx(0.5)
    assert perplexity_ratio(rows, [row(20.0, tokens=10), row(10.0, tokens=30)]) == pytest.approx(math.exp(0.25))


def test_the_right_choice_must_be_likelier_than_all_others() -> None:
    assert row(1.0, choice_nats=(1.0, 1.5, 2.0)).share_right == 1.0
    assert row(1.0, choice_nats=(1.0, 0.5, 2.0)).share_right == 0.0
    assert row(1.0, choice_nats=(1.0, 1.0, 2.0)).share_right == 0.0


def test_a_choice_counts_by_the_share_of_wordings_in_which_it_is_right() -> None:
    reworded = ((1.0, 0.5, 2.0), (0.5, 1.0, 2.0))
    assert row(1.0, choice_nats=(1.0, 1.5, 2.0), reworded_choice_nats=reworded).share_right == pytest.approx(2 / 3)


def test_information_is_what_the_question_takes_off_the_answer() -> None:
    assert row(3.0, blind_nats=5.0).information == 2.0
    assert row(3.0, blind_nats=1.0).information == -2.0
    assert row(3.0).information is None
