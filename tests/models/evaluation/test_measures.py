"""Measures on hand-computed scores, and which of them count."""

import pytest

from models.evaluation.measures import MIN_ROWS, is_clear, measures_of
from models.evaluation.scores import RowScore
from models.evaluation.table import Measure


def text(nats: float, tokens: int = 20) -> RowScore:
    return RowScore(dataset="heldout", task="legal", num_tokens=tokens, nats=nats, kl=0.0, num_agreed=0)


def chosen(*nats: float) -> RowScore:
    return RowScore(dataset="trivia", task="fact", num_tokens=2, nats=4.0, kl=0.0, num_agreed=2, choice_nats=nats)


def answer(nats: float, blind: float | None, *choices: float, tokens: int = 2) -> RowScore:
    return RowScore(
        dataset="trivia",
        task="fact",
        num_tokens=tokens,
        nats=nats,
        kl=0.0,
        num_agreed=0,
        choice_nats=choices,
        blind_nats=blind,
    )


RIGHT, WRONG = chosen(1.0, 2.0, 3.0, 4.0), chosen(2.0, 1.0, 3.0, 4.0)


def found(path: list[RowScore], base: list[RowScore], seed: int = 0) -> dict[str, Measure]:
    return {one.measure.kind: one.measure for one in measures_of(path, base, seed)}


def test_a_likelihood_ratio_is_the_base_over_the_path() -> None:
    (one,) = measures_of([text(40.0), text(60.0)], [text(20.0), text(60.0)], seed=0)
    measure = one.measure
    assert (measure.name, measure.kind, measure.n, measure.num_tokens) == ("heldout_likelihood", "likelihood", 2, 40)
    assert (measure.value, measure.full_value) == (2.5, 2.0)
    assert measure.ratio == pytest.approx(0.8)
    assert measure.low == pytest.approx(0.5)  # all resamples lie between the rows' own ratios
    assert measure.high == pytest.approx(1.0)


def test_a_choices_ratio_is_that_of_what_is_above_chance() -> None:
    measure = found([RIGHT] * 40 + [WRONG] * 60, [RIGHT] * 55 + [WRONG] * 45)["choice"]
    assert (measure.name, measure.value, measure.full_value, measure.chance) == ("trivia_choice", 0.4, 0.55, 0.25)
    assert measure.ratio == pytest.approx(0.5)  # 0.15 of 0.30
    assert 0.2 < measure.low < 0.5 < measure.high < 0.8
    assert measure.is_counted


def test_a_path_that_guesses_keeps_nothing_of_a_choice() -> None:
    base = [RIGHT] * 80 + [WRONG] * 20
    assert found([RIGHT] * 25 + [WRONG] * 75, base)["choice"].ratio == 0.0


def test_chance_is_that_of_every_rows_own_choices() -> None:
    """Two of two choices right and two of four: 4 - 2/2 - 2/4 above chance for the base."""
    two, four = chosen(1.0, 2.0), chosen(1.0, 2.0, 2.0, 2.0)
    measure = found([two, two, WRONG, WRONG], [two, two, four, four])["choice"]
    assert measure.chance == 0.375
    assert measure.ratio == pytest.approx((2 - 1.5) / (4 - 1.5))


def test_a_figure_is_clear_when_its_low_end_keeps_two_thirds_of_what_is_above_chance() -> None:
    assert is_clear(0.55, 0.45, 0.25)
    assert not is_clear(0.55, 0.44, 0.25)
    assert not is_clear(0.25, 0.25, 0.25)
    assert not is_clear(0.2, 0.19, 0.25)


def test_an_accuracy_near_chance_does_not_count_though_its_interval_lies_above() -> None:
    """0.30 of 1,500 has an interval from 0.277 on, but shares of 0.05 cannot be told apart by it."""
    base = [RIGHT] * 450 + [WRONG] * 1050
    measure = found(base, base)["choice"]
    assert measure.full_low == pytest.approx(0.277, abs=1e-3)
    assert not measure.is_counted
    assert measure.reason == "the full path's accuracy 0.300 is not clearly above 0.250"


def test_a_choice_that_few_rows_have_does_not_count() -> None:
    for num_chosen, num_plain, is_counted in ((19, 0, False), (20, 0, True), (40, 40, True), (40, 41, False)):
        rows = [answer(4.0, 8.0, 1.0, 2.0)] * num_chosen + [answer(4.0, 8.0)] * num_plain
        measure = found(rows, rows)["choice"]
        assert measure.is_counted is is_counted
        assert ("have choices" in measure.reason) is not is_counted


def test_rows_are_resampled_in_pairs() -> None:
    """A path that is right exactly where the base is keeps everything, with no doubt, however few rows."""
    rows = [RIGHT, WRONG, RIGHT, WRONG, RIGHT]
    measure = found(rows, rows)["choice"]
    assert (measure.ratio, measure.low, measure.high) == (1.0, 1.0, 1.0)


def test_information_is_what_the_question_takes_off_the_answer_against_the_bases() -> None:
    """Per token the question takes 3 nats off in the base, and 1 nat in the path, which finds all answers likelier."""
    path = [answer(2.0, 4.0), answer(4.0, 6.0)] * 15
    base = [answer(6.0, 12.0), answer(8.0, 14.0)] * 15
    measure = found(path, base)["information"]
    assert (measure.name, measure.n, measure.num_tokens, measure.chance) == ("trivia_information", 30, 60, 0.0)
    assert (measure.value, measure.full_value) == (1.0, 3.0)
    assert measure.ratio == pytest.approx(1 / 3)
    assert [measure.low, measure.high] == pytest.approx([1 / 3, 1 / 3])
    assert (measure.full_low, measure.full_high) == (3.0, 3.0)
    assert measure.is_counted
    assert measure.reason == "short answers without choices"


def test_a_path_that_does_not_hear_the_question_keeps_no_information() -> None:
    base = [answer(6.0, 12.0)] * 30
    assert found([answer(5.0, 5.0)] * 30, base)["information"].ratio == 0.0
    assert found(base, base)["information"].ratio == 1.0


def test_information_stands_for_a_choice_that_is_not_clear_and_for_short_likelihoods() -> None:
    unsure = [answer(4.0, 8.0, 1.0, 2.0), answer(4.0, 8.0, 2.0, 1.0)] * 15
    measures = found(unsure, unsure)
    assert {kind: one.is_counted for kind, one in measures.items()} == {
        "likelihood": False,
        "choice": False,
        "information": True,
    }
    assert measures["information"].reason == measures["choice"].reason
    sure = [answer(4.0, 8.0, 1.0, 2.0)] * 30
    measures = found(sure, sure)
    assert {kind: one.is_counted for kind, one in measures.items()} == {
        "likelihood": False,
        "choice": True,
        "information": False,
    }


def test_information_needs_rows_and_a_base_that_clearly_has_some() -> None:
    few = [answer(4.0, 8.0)] * (MIN_ROWS - 1)
    assert "too few" in found(few, few)["information"].reason
    mixed = [answer(4.0, 8.0), answer(4.0, 1.0)] * 15  # +4 and -3: its interval holds 0
    measure = found(mixed, mixed)["information"]
    assert not measure.is_counted
    assert "too little" in measure.reason


def test_rows_without_another_question_have_no_part_in_information() -> None:
    rows = [answer(4.0, 8.0)] * 30 + [answer(4.0, None)] * 5
    assert found(rows, rows)["information"].n == 30
    assert found(rows, rows)["likelihood"].n == 35


def test_the_seed_decides_the_interval() -> None:
    path, base = [text(float(n)) for n in range(5, 25)], [text(float(n % 7 + 3)) for n in range(20)]
    intervals: dict[int, list[tuple[float, float]]] = {}
    for seed in (1, 1, 2):
        measure = found(path, base, seed)["likelihood"]
        intervals.setdefault(seed, []).append((measure.low, measure.high))
    assert intervals[1][0] == intervals[1][1]
    assert intervals[1][0] != intervals[2][0]


def test_a_base_that_is_never_right_gives_a_finite_ratio() -> None:
    measure = found([RIGHT, WRONG], [WRONG, WRONG])["choice"]
    assert (measure.ratio, measure.is_counted) == (1.0, False)
