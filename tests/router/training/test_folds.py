"""All sources of a data set share a fold, and data sets of one kind are spread over the folds."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.training.corpus import Row
from router.training.folds import assign_folds, family, fold_numbers


def row(source: str, label: str = "math", lang: str = "en") -> Row:
    return Row(text="x", label=label, lang=lang, source=source)


ROWS = st.lists(
    st.builds(
        row,
        source=st.sampled_from(["A", "A law", "A math dev", "B", "B x", "C", "D", "E", "written:A", "written:B x"]),
        label=st.sampled_from(["math", "legal", "other"]),
        lang=st.sampled_from(["en", "zh"]),
    ),
    max_size=40,
)


@pytest.mark.parametrize(
    ("source", "name"), [("MMLU law", "MMLU"), ("MMLU", "MMLU"), (" GSM8K  dev", "GSM8K"), ("", ""), (" ", " ")]
)
def test_family_is_the_first_word(source: str, name: str) -> None:
    assert family(source) == name


@given(rows=ROWS, num_folds=st.integers(1, 9))
def test_no_family_is_on_both_sides(rows: list[Row], num_folds: int) -> None:
    numbers = fold_numbers(rows, num_folds)
    for tested in range(num_folds):
        inside = {family(one.source) for one, number in zip(rows, numbers, strict=True) if number == tested}
        outside = {family(one.source) for one, number in zip(rows, numbers, strict=True) if number != tested}
        assert not inside & outside


@given(rows=ROWS, num_folds=st.integers(1, 9))
def test_every_real_row_is_tested_and_no_written_one(rows: list[Row], num_folds: int) -> None:
    for one, number in zip(rows, fold_numbers(rows, num_folds), strict=True):
        assert (number is None) == one.source.startswith("written:")
        assert number is None or 0 <= number < num_folds


@given(rows=ROWS, seed=st.integers(0, 99))
def test_folds_do_not_depend_on_the_order_of_rows(rows: list[Row], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert assign_folds(rows, 3) == assign_folds(shuffled, 3)


def test_families_of_one_kind_are_spread() -> None:
    rows = [row(f"{name} {part}") for name in "ABCD" for part in (1, 2)]
    assert sorted(assign_folds(rows, 4).values()) == [0, 1, 2, 3]


def test_families_of_a_kind_are_spread_before_rows_are_levelled() -> None:
    """The second of law leaves with the large one of math, though the fold of the first of law is smaller."""
    rows = [row("A")] * 9 + [row("B", "legal")] * 5 + [row("C", "legal")]
    assert assign_folds(rows, 2) == {"A": 0, "B": 1, "C": 0}


def test_fewer_families_than_folds_leave_folds_empty() -> None:
    assert assign_folds([row("A"), row("A dev")], 5) == {"A": 0}
    assert assign_folds([], 5) == {}
