"""Figures worked out by hand from scores of a few texts."""

import math
from dataclasses import replace
from typing import Any

import pytest

from models.evaluation.figures import Figures, figures_of
from models.evaluation.measures import measures_of
from models.evaluation.rows import OWN_WORDS
from models.evaluation.scores import AnswerScore, PairScore, RowScore, Scores, TextScore, repeated_ngrams

RATIOS = {
    "perplexity_ratio_own",
    "perplexity_ratio_human",
    "perplexity_ratio_plain",
    "information_kept",
    "choice_kept",
    "accuracy_kept",
    "blimp_kept",
    "rescored_nats_ratio",
    "repetition_ratio",
}


def row(nats: float, dataset: str = OWN_WORDS, task: str = "legal", tokens: int = 20, **more: Any) -> RowScore:
    return RowScore(dataset=dataset, task=task, num_tokens=tokens, nats=nats, **more)


def text(nats: float, task: str, tokens: int = 10) -> TextScore:
    return TextScore(dataset="plain", task=task, num_tokens=tokens, nats=nats)


def answer(prompt: str, nats: float, tokens: int, ngrams: int = 10, repeated: int = 0) -> AnswerScore:
    return AnswerScore(
        task="legal", prompt=prompt, num_tokens=tokens, nats=nats, num_ngrams=ngrams, num_repeated=repeated
    )


def figures(mine: Scores, full: Scores, task: str = "legal") -> Figures:
    measures = [one.measure for one in measures_of(mine.rows, full.rows, 0)]
    return figures_of(mine, full, measures, 0)[task]


def test_perplexity_ratios_are_those_of_each_kind_of_text() -> None:
    mine = Scores(
        rows=[row(26.0), row(18.0, full_kl=3.0, num_full_agreed=15)],
        plain=[text(30.0, "legal"), text(41.0, "general"), text(99.0, "creative")],
    )
    full = Scores(
        rows=[row(20.0), row(16.0)], plain=[text(28.0, "legal"), text(40.0, "general"), text(50.0, "creative")]
    )
    found = figures(mine, full)
    assert found["perplexity_ratio_own"].value == pytest.approx(math.exp((44 - 36) / 40))
    assert found["perplexity_ratio_human"].value == pytest.approx(math.exp(0.2))
    assert found["perplexity_ratio_plain"].value == pytest.approx(math.exp(0.1))
    assert [found[f"perplexity_ratio_{kind}"].rows for kind in ("own", "human", "plain")] == [2, 1, 1]
    assert (found["kl"].value, found["agreement"].value, found["kl"].rows) == (3.0 / 20, 15 / 20, 1)


def test_intervals_are_those_of_the_rows() -> None:
    """Two rows: a resample has both, or one of them twice."""
    found = figures(Scores(rows=[row(26.0), row(18.0)]), Scores(rows=[row(20.0), row(16.0)]))["perplexity_ratio_own"]
    assert [found.low, found.high] == pytest.approx([math.exp(2 / 20), math.exp(6 / 20)])


def test_long_reference_answers_are_the_human_text_of_a_task_without_other() -> None:
    mine = Scores(rows=[row(9.0, task="math"), row(30.0, "gsm8k", "math"), row(50.0, "svamp", "math", tokens=2)])
    full = Scores(rows=[row(9.0, task="math"), row(28.0, "gsm8k", "math"), row(5.0, "svamp", "math", tokens=2)])
    assert figures(mine, full, "math")["perplexity_ratio_human"].value == pytest.approx(math.exp(2 / 20))


def test_a_figure_without_its_text_is_left_out() -> None:
    assert set(figures(Scores(rows=[row(2.0, "d")]), Scores(rows=[row(1.0, "d")]))) == {"perplexity_ratio_human"}


def test_general_text_alone_is_no_task() -> None:
    scores = Scores(rows=[row(2.0)], plain=[text(1.0, "general"), text(1.0, "creative")])
    assert set(figures_of(scores, scores, [], 0)) == {"legal", "creative"}


def test_pairs_are_kept_in_every_task_alike() -> None:
    right, wrong = PairScore(good_nats=1.0, bad_nats=2.0), PairScore(good_nats=2.0, bad_nats=2.0)
    mine = Scores(rows=[row(1.0)], pairs=[right, wrong, right, wrong])
    full = Scores(rows=[row(1.0)], pairs=[right, right, right, wrong])
    found = figures(mine, full)["blimp_kept"]
    assert found.value == pytest.approx(2 / 3)
    assert (found.rows, found.high) == (4, 1.0)
    nothing = Scores(rows=[row(1.0)], pairs=[wrong])
    assert "blimp_kept" not in figures(nothing, nothing)


def choices(num_right: int, num_rows: int, dataset: str, blind: float = 60.0) -> list[RowScore]:
    """A choice of two. Every answer of 20 tokens has 40 nats."""
    return [
        row(40.0, dataset, "math", choice_nats=(1.0, 2.0 if number < num_right else 0.5), blind_nats=blind)
        for number in range(num_rows)
    ]


def test_choices_are_kept_above_chance_and_raw() -> None:
    """The full path has 36 of 40, of which 16 are above the 20 of chance; the path has 32."""
    mine = Scores(rows=[*choices(32, 40, "gsm8k"), *choices(9, 50, "svamp")])
    full = Scores(rows=[*choices(36, 40, "gsm8k"), *choices(25, 50, "svamp")])
    found = figures(mine, full, "math")
    assert found["choice_kept"].value == pytest.approx(12 / 16)
    assert found["accuracy_kept"].value == pytest.approx(32 / 36)
    assert found["choice_kept"].rows == found["accuracy_kept"].rows == 40


def test_a_choice_at_chance_is_kept_raw_alone() -> None:
    found = figures(Scores(rows=choices(21, 40, "trivia")), Scores(rows=choices(22, 40, "trivia")), "math")
    assert "choice_kept" not in found
    assert found["accuracy_kept"].value == pytest.approx(21 / 22)


def test_a_choice_in_several_wordings_is_their_mean_and_its_rows_are_questions() -> None:
    """Right in both wordings and in one of them: the full path on 20 and 20 questions, the path on 15 and 15."""
    worded = [
        [
            replace(score, reworded_choice_nats=((1.0, 2.0 if number < num_right // 2 else 0.5),))
            for number, score in enumerate(choices(num_right, 40, "trivia"))
        ]
        for num_right in (30, 40)
    ]
    found = figures(Scores(rows=worded[0]), Scores(rows=worded[1]), "math")["accuracy_kept"]
    assert found.value == pytest.approx(22.5 / 30)
    assert found.rows == 40


def test_information_is_that_of_the_clear_dataset() -> None:
    mine = Scores(rows=choices(20, 40, "trivia", blind=55.0))
    full = Scores(rows=choices(20, 40, "trivia", blind=60.0))
    found = figures(mine, full, "math")["information_kept"]
    assert (found.value, found.rows) == (0.75, 40)


def test_few_rows_keep_no_choice_and_no_information() -> None:
    scores = Scores(rows=choices(19, 19, "trivia"))
    assert {"choice_kept", "information_kept"} & set(figures(scores, scores, "math")) == set()


def test_answers_are_compared_on_the_prompts_that_both_have() -> None:
    mine = Scores(rows=[row(1.0)], answers=[answer("a", 30.0, 20), answer("b", 20.0, 20), answer("c", 999.0, 1)])
    full = Scores(rows=[row(1.0)], answers=[answer("b", 8.0, 10), answer("a", 12.0, 10)])
    found = figures(mine, full)["rescored_nats_ratio"]
    assert found.value == pytest.approx((50 / 40) / (20 / 20))
    assert found.rows == 2


def test_repetition_has_a_ratio_where_the_full_path_never_repeats() -> None:
    mine = Scores(rows=[row(1.0)], answers=[answer("a", 1.0, 10, ngrams=49, repeated=9)])
    full = Scores(rows=[row(1.0)], answers=[answer("a", 1.0, 10, ngrams=99, repeated=0)])
    assert figures(mine, full)["repetition_ratio"].value == pytest.approx((10 / 50) / (1 / 100))


def test_repeated_runs_are_counted_from_their_second_time_on() -> None:
    assert repeated_ngrams((1, 2, 3, 4, 1, 2, 3, 4, 1, 2)) == (7, 3)
    assert repeated_ngrams((1, 1, 1, 1, 1, 1)) == (3, 2)
    assert repeated_ngrams((1, 2, 3)) == (0, 0)


def test_a_path_like_the_full_one_keeps_exactly_everything() -> None:
    scores = Scores(
        rows=[*choices(36, 40, "gsm8k"), row(1.7, task="math", full_kl=0.0, num_full_agreed=20)],
        plain=[text(3.3, "math"), text(4.1, "general")],
        pairs=[PairScore(good_nats=1.0, bad_nats=1.1), PairScore(good_nats=1.0, bad_nats=0.1)],
        answers=[AnswerScore(task="math", prompt="a", num_tokens=7, nats=3.1, num_ngrams=4, num_repeated=0)],
    )
    found = figures(scores, scores, "math")
    assert set(found) == RATIOS | {"kl", "agreement"}
    for name in RATIOS | {"agreement"}:
        assert (found[name].value, found[name].low, found[name].high) == (1.0, 1.0, 1.0), name
    assert (found["kl"].value, found["kl"].low, found["kl"].high) == (0.0, 0.0, 0.0)
