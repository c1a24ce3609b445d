"""What is kept of an answer: whole answers only, and all of what bodies are made of."""

import math
import time
from dataclasses import fields, replace
from typing import Any

import msgspec
import pytest

from engines.sequence import Finish, FinishReason, SequenceEvent, TokenLogprob
from router.cache.entry import Choice, Entry, decode_entry, encode_entry, entry_of, replay
from tests.router.flights import USAGE, end, text

TOKEN = TokenLogprob(
    token_id=5,
    logprob=-0.5,
    token_bytes=b"\xff",
    alternatives=(TokenLogprob(token_id=6, logprob=-1.0, token_bytes=b"a"),),
)
SCORED = SequenceEvent(sequence_id="s", text="b", logprobs=(TOKEN,))
NOT_KEPT = {"sequence_id", "token_ids", "timings", "error", "finish", "num_chunks", "score", "end_token_id"}
"""Of an event and its end: what belongs to one generation alone. `finish` is taken apart."""


def whole() -> Entry:
    entry = entry_of(
        [(1, text("x")), (0, text("a")), (0, SCORED), (1, end(FinishReason.LENGTH)), (0, end(words="c"))], 2
    )
    assert entry is not None
    return entry


def test_entry_keeps_every_field_of_events_that_an_answer_is_made_of() -> None:
    there = {part.name for kind in (SequenceEvent, Finish) for part in fields(kind)}
    assert there - NOT_KEPT == set(Choice.__struct_fields__)


def test_entry_of_events_is_the_answer_by_choice() -> None:
    first, second = whole().choices
    assert (first.text, first.logprobs, first.reason, first.stop) == ("abc", (TOKEN,), FinishReason.STOP, "END")
    assert (second.text, second.reason, second.usage) == ("x", FinishReason.LENGTH, USAGE)


@pytest.mark.parametrize("last", [text("more"), end(FinishReason.ERROR), end(FinishReason.ABORT)])
def test_entry_is_none_for_what_is_no_whole_answer(last: SequenceEvent) -> None:
    assert entry_of([(0, end()), (1, last)], 2) is None


def test_entry_survives_encoding() -> None:
    entry = whole()
    assert decode_entry(encode_entry(entry), 2, "full") == entry


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        b"hello",
        b"\x91" * 100_000,
        msgspec.msgpack.encode([1.0]),
        msgspec.msgpack.encode([1.0, [["text", [], "no reason", "full", {}, None]]]),
        msgspec.msgpack.encode({"stored_s": 1.0}),
        encode_entry(whole())[:-3],
        encode_entry(whole()),
    ],
)
def test_rubbish_and_answers_to_another_number_of_choices_are_none(value: bytes) -> None:
    assert decode_entry(value, 1, "full") is None


def test_entry_of_a_failed_choice_is_not_believed() -> None:
    bad = msgspec.structs.replace(whole().choices[0], reason=FinishReason.ERROR)
    assert decode_entry(encode_entry(Entry(stored_s=1.0, choices=(bad,))), 1, "full") is None


@pytest.mark.parametrize("stored_s", [math.nan, math.inf, -math.inf, pytest.param(time.time() + 86400, id="tomorrow")])
def test_entry_of_no_time_there_has_been_is_not_believed(stored_s: float) -> None:
    entry = msgspec.structs.replace(whole(), stored_s=stored_s)
    assert decode_entry(encode_entry(entry), 2, "full") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "shallow"},
        {"path": "full\r\nx-fenhe-task: math"},
        {"usage": replace(USAGE, num_prompt_tokens=-1)},
        {"usage": replace(USAGE, num_cached_tokens=-1)},
        {"usage": replace(USAGE, num_completion_tokens=-1)},
    ],
    ids=repr,
)
def test_entry_with_a_choice_no_engine_would_give_is_not_believed(wrong: dict[str, Any]) -> None:
    first, second = whole().choices
    entry = Entry(stored_s=time.time(), choices=(first, msgspec.structs.replace(second, **wrong)))
    assert decode_entry(encode_entry(entry), 2, "full") is None


def test_replay_makes_the_same_entry_again() -> None:
    entry = whole()
    again = entry_of(replay(entry), 2)
    assert again is not None
    assert again.choices == entry.choices
