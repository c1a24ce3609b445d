"""How many rows a step may have is learned from what steps take."""

import pytest

from engines.scheduling.row_pace import LEAST_ROWS, RowPace
from engines.sequence import Sequence
from tests.engines.scheduling.test_turns import rows_of


def rows(**counts: int) -> list[Sequence]:
    """So many rows of each tenant."""
    return [row for tenant, count in counts.items() for row in rows_of(tenant, count)]


def learned(steps: list[tuple[int, float]], busy_step_s: float | None = 0.0751) -> RowPace:
    """Rows have two thirds of a bounded step: just above 50 ms."""
    pace = RowPace(busy_step_s)
    for num_rows, seconds in steps:
        pace.note_step(num_rows, seconds)
    return pace


def most_of(pace: RowPace, num_rows: int = 32) -> int | None:
    """Beside one row of another tenant."""
    return pace.most_rows(rows(heavy=num_rows - 1, light=1))


def test_all_rows_run_before_a_step_took_too_long() -> None:
    assert most_of(learned([])) is None
    assert most_of(learned([(1, 0.01), (32, 0.05)])) is None


def test_step_that_took_too_long_is_cut_in_proportion() -> None:
    assert most_of(learned([(1, 0.01), (32, 0.1)])) == 16


def test_bound_rises_by_a_row_for_every_step_that_had_time_left() -> None:
    steps = [(1, 0.01), (32, 0.1), (16, 0.04), (17, 0.04)]
    assert most_of(learned(steps)) == 18
    assert most_of(learned([*steps, (5, 0.02)])) == 18


def test_no_bound_is_nobodys_bound() -> None:
    assert most_of(learned([(1, 0.01), (32, 9.0)], busy_step_s=None)) is None


def test_rows_are_never_fewer_than_a_few() -> None:
    assert most_of(learned([(1, 0.01), (32, 9.0)])) == LEAST_ROWS


def test_step_may_take_twice_as_long_as_one_row() -> None:
    """Of a large model, one row of which takes longer than the bound."""
    assert most_of(learned([(1, 0.2), (32, 0.4)])) is None
    assert most_of(learned([(1, 0.2), (32, 0.8)])) == 16


def test_interrupted_step_costs_little() -> None:
    usual = [(1, 0.01), (32, 0.1), *[(16, 0.04)] * 8]
    assert most_of(learned([*usual, (16, 60.0)])) in range(15, 18)


def test_interrupted_step_costs_little_where_it_is_the_first_with_so_many_rows() -> None:
    usual = [(1, 0.01), (32, 0.1), *[(15, 0.04)] * 8]
    assert most_of(learned([*usual, (16, 60.0)])) in range(8, 18)
    assert most_of(learned([*usual, (2, 60.0)])) == 16


def test_row_alone_that_was_measured_in_a_cold_start_is_corrected_by_steps_with_more() -> None:
    """Else a step of 32 rows could take twice as long for ever."""
    steps = [(1, 0.4), *[(4, 0.02)] * 4]
    assert most_of(learned([*steps, (32, 0.1)])) == 16


def test_many_rows_that_were_interrupted_at_first_are_corrected_by_steps_with_fewer() -> None:
    steps = [(16, 60.0), *[(4, 0.02)] * 4, *[(16, 0.04)] * 4]
    assert most_of(learned([(32, 60.0), *steps])) in range(14, 18)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 32}, None),
        ({"a": 16, "b": 16}, None),
        ({"a": 9, "b": 9}, None),
        ({"a": 8, "b": 8}, None),
        ({"a": 24, "b": 8}, 16),
        ({"a": 24, "b": 9}, None),
        ({f"t{number}": 1 for number in range(32)}, None),
        ({"a": 30, "b": 1, "c": 20}, 16),
    ],
)
def test_rows_are_bounded_where_a_tenant_with_few_gains(counts: dict[str, int], expected: int | None) -> None:
    assert learned([(1, 0.01), (32, 0.1)]).most_rows(rows(**counts)) == expected
