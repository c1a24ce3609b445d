"""How long answers will probably be: by tenant and path, forgotten in time, bounded in number."""

import pytest

from router.admission.answer_lengths import HALF_LIFE_S, MAX_KEYS, PRIOR_TOKENS, AnswerLengths

KEY = ("us", "full")


def lengths_of(*tokens: int, key: tuple[str, str] = KEY) -> AnswerLengths:
    lengths = AnswerLengths()
    for num_tokens in tokens:
        lengths.add(key, num_tokens, 0.0)
    return lengths


def test_nothing_known_is_the_prior() -> None:
    assert AnswerLengths().expected(KEY, 0.0) == PRIOR_TOKENS


def test_mean_of_many_answers_outweighs_the_prior() -> None:
    assert lengths_of(*[10] * 500).expected(KEY, 0.0) == pytest.approx(10, abs=1)
    assert 10 < lengths_of(10).expected(KEY, 0.0) < PRIOR_TOKENS


@pytest.mark.parametrize("other", [("them", "full"), ("us", "short"), ("", "full")])
def test_answers_of_others_and_other_paths_do_not_count(other: tuple[str, str]) -> None:
    assert lengths_of(*[5000] * 500, key=other).expected(KEY, 0.0) == PRIOR_TOKENS


def test_mean_follows_what_is_newer_and_is_forgotten_in_the_end() -> None:
    lengths = lengths_of(*[5000] * 100)
    for _ in range(100):
        lengths.add(KEY, 10, 10 * HALF_LIFE_S)
    assert lengths.expected(KEY, 10 * HALF_LIFE_S) < 30
    assert lengths.expected(KEY, 50 * HALF_LIFE_S) == pytest.approx(PRIOR_TOKENS, rel=1e-3)


def test_asking_does_not_change_what_is_known() -> None:
    asked, silent = lengths_of(*[1000] * 5), lengths_of(*[1000] * 5)
    for second in range(100):
        asked.expected(KEY, float(second))
    assert asked.expected(KEY, 100.0) == pytest.approx(silent.expected(KEY, 100.0))


def test_answer_that_is_reported_late_counts_and_sets_nothing_back() -> None:
    lengths = lengths_of(10)
    lengths.expected(KEY, 100.0)
    before = lengths.expected(KEY, 100.0)
    lengths.add(KEY, 0, 50.0)
    assert lengths.expected(KEY, 100.0) < before


def test_tenants_come_and_go_and_the_one_silent_longest_is_forgotten() -> None:
    lengths = lengths_of(*[1] * 9)
    for number in range(MAX_KEYS - 1):
        lengths.add((f"tenant-{number}", "full"), 1, 0.0)
    lengths.add(KEY, 1, 0.0)
    lengths.add(("one more", "full"), 1, 0.0)
    assert len(lengths) == MAX_KEYS
    assert lengths.expected(KEY, 0.0) < PRIOR_TOKENS
    assert lengths.expected(("tenant-0", "full"), 0.0) == PRIOR_TOKENS
