"""When an answer ends, and what of its last token is shown, without an engine."""

from typing import Any

import pytest

from engines.loop.ending import Outcome, ends_with_prompt, is_end_token, take_newest_token
from engines.sequence import FinishReason, GenerationRequest, SamplingParams, Sequence, new_sequence

EOS = 0
CAPACITY_TOKENS = 100
TEXTS = {1: b"one ", 2: b"two ", 3: b"STOP", 4: b"ST", 5: b"OP", 6: "é".encode()[:1]}
"""What tokens stand for; 6 is half a character."""


class Matcher:
    """A grammar that ends when the test says so."""

    is_finished = False


def sequence(**sampling: Any) -> Sequence:
    params = SamplingParams(**{"max_tokens": 10, **sampling})
    request = GenerationRequest(id="a", prompt_token_ids=(9, 9), path="full", sampling=params)
    return new_sequence(request, lambda token: TEXTS.get(token, b""))


def take(answer: Sequence, *token_ids: int, capacity_tokens: int = CAPACITY_TOKENS) -> Outcome:
    """The outcome of the last of these tokens; those before it end nothing."""
    for token_id in token_ids:
        answer.token_ids.append(token_id)
        outcome = take_newest_token(answer, eos_token_ids={EOS}, capacity_tokens=capacity_tokens)
        if token_id != token_ids[-1]:
            assert outcome.reason is None
    return outcome


def test_ending_a_token_in_the_middle_is_shown_and_ends_nothing() -> None:
    assert take(sequence(), 1) == Outcome(text="one ", reason=None, shows_token=True)


def test_ending_by_eos_shows_neither_it_nor_its_text() -> None:
    assert take(sequence(), 1, EOS) == Outcome(text="", reason=FinishReason.STOP, shows_token=False)


def test_ending_eos_that_is_ignored_is_a_token_like_others() -> None:
    assert take(sequence(ignore_eos=True), EOS) == Outcome(text="", reason=None, shows_token=True)


def test_ending_by_a_stop_token_holds_even_where_eos_is_ignored() -> None:
    answer = sequence(stop_token_ids=frozenset({EOS, 2}), ignore_eos=True)
    assert take(answer, 1, 2) == Outcome(text="", reason=FinishReason.STOP, shows_token=False)
    assert is_end_token(EOS, answer.request.sampling, {EOS})


def test_ending_token_is_told_where_the_prompt_is_scored() -> None:
    assert take(sequence(prompt_logprobs=0), EOS).shows_token


def test_ending_by_a_stop_string_shows_the_token_and_the_text_before_it() -> None:
    answer = sequence(stop=("STOP",))
    assert take(answer, 1, 3) == Outcome(text="", reason=FinishReason.STOP, shows_token=True)
    assert answer.text.matched == "STOP"


def test_ending_by_a_stop_string_across_tokens() -> None:
    answer = sequence(stop=("STOP",))
    assert take(answer, 1, 4) == Outcome(text="")
    assert take(answer, 5).reason is FinishReason.STOP


@pytest.mark.parametrize("ender", [EOS, 2])
def test_ending_shows_what_might_have_become_a_stop_string(ender: int) -> None:
    answer = sequence(stop=("STOP",), max_tokens=3)
    assert take(answer, 1, 4).text == ""
    assert take(answer, ender).text == ("ST" if ender == EOS else "STtwo ")


def test_ending_by_length_at_max_tokens() -> None:
    assert take(sequence(max_tokens=2), 1, 2) == Outcome(text="two ", reason=FinishReason.LENGTH)


def test_ending_by_length_at_the_capacity() -> None:
    assert take(sequence(), 1, 2, capacity_tokens=4) == Outcome(text="two ", reason=FinishReason.LENGTH)


def test_ending_in_the_middle_of_a_character_shows_nothing_of_it() -> None:
    assert take(sequence(max_tokens=1), 6) == Outcome(text="", reason=FinishReason.LENGTH)


def test_ending_stop_string_wins_over_the_length() -> None:
    assert take(sequence(max_tokens=2, stop=("STOP",)), 1, 3).reason is FinishReason.STOP


def test_ending_by_grammar_shows_its_last_token_and_wins_over_the_length() -> None:
    answer = sequence(max_tokens=2)
    matcher: Any = Matcher()
    answer.matcher = matcher
    assert take(answer, 1).reason is None
    matcher.is_finished = True
    assert take(answer, 2) == Outcome(text="two ", reason=FinishReason.STOP, shows_token=True)


@pytest.mark.parametrize(("max_tokens", "expected"), [(0, True), (1, False)])
def test_ends_with_prompt_when_no_token_is_wanted(max_tokens: int, expected: bool) -> None:
    assert ends_with_prompt(sequence(max_tokens=max_tokens)) is expected


def test_ending_by_a_stop_string_that_is_wanted_in_the_text() -> None:
    assert take(sequence(stop=("STOP",), shows_stop=True), 1, 3).text == "STOP"


def test_ending_by_a_stop_token_that_is_wanted_in_the_text() -> None:
    answer = sequence(stop_token_ids=frozenset({2}), shows_stop=True)
    assert take(answer, 1, 2) == Outcome(text="two ", reason=FinishReason.STOP, shows_token=True)
    assert take(sequence(shows_stop=True), EOS) == Outcome(text="", reason=FinishReason.STOP, shows_token=False)


def test_ending_by_a_stop_string_counts_after_the_least_number_of_tokens() -> None:
    assert take(sequence(stop=("STOP",), min_tokens=2), 1, 3) == Outcome(text="STOP")
    assert take(sequence(stop=("STOP",), min_tokens=2), 1, 2, 3).reason is FinishReason.STOP
    across = sequence(stop=("STOP",), min_tokens=1)
    assert take(across, 4, 5).reason is FinishReason.STOP
