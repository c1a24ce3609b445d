"""The search for the knee, on servers whose knee is known."""

import pytest

from loadtest.comparison.sweep import LEAST_RATE, confirmed, find_concurrency, find_rate


@pytest.mark.parametrize("knee", [0.3, 2.0, 7.7, 40.0])
@pytest.mark.parametrize("start", [0.5, 5.0, 30.0])
def test_knee_is_found_from_either_side(knee: float, start: float) -> None:
    search = find_rate(lambda rate: rate <= knee, start, most_tries=30, precision=1.05)
    assert search.best is not None
    assert knee / 1.05 <= search.best <= knee


def test_tries_are_bounded_and_all_of_them_told() -> None:
    search = find_rate(lambda rate: rate <= 10, 8.0, most_tries=4, precision=1.001)
    assert len(search.tried) == 4
    assert all(is_kept == (rate <= 10) for rate, is_kept in search.tried)


def test_server_that_bears_no_load_has_no_knee() -> None:
    search = find_rate(lambda rate: False, 1.0, most_tries=30, precision=1.05)
    assert search.best is None
    assert search.tried[-1][0] == LEAST_RATE


def test_noise_does_not_put_the_knee_above_what_failed_for_good() -> None:
    answers = iter([False, True, True, False, False])  # the first failure was noise
    search = find_rate(lambda rate: next(answers), 4.0, most_tries=5, precision=1.05)
    assert search.best == max(rate for rate, is_kept in search.tried if is_kept)


def test_concurrency_is_found_between_the_steps_of_the_ladder() -> None:
    search = find_concurrency(lambda users: users <= 11, {1: True, 4: True, 16: False, 64: False}, most_tries=9)
    assert search.best == 11
    assert find_concurrency(lambda users: True, {1: True, 4: True}, most_tries=9).best == 4
    assert find_concurrency(lambda users: False, {1: False}, most_tries=9).best is None


def test_unconfirmed_knee_is_lowered_by_steps() -> None:
    assert confirmed(lambda rate: rate <= 9.6, 10.0, most_tries=4) == pytest.approx(10 / 1.05)
    assert confirmed(lambda rate: False, 10.0, most_tries=3) is None
