"""What is kept of an answer: neither JSON nor stream events, but what either is made from.

Ids, times and model names are left out, because every response has its own.
"""

import math
import time
from collections.abc import Iterable

import msgspec

from engines.sequence import Finish, FinishReason, SequenceEvent, Timings, TokenLogprob, Usage

GOOD_ENDS = frozenset({FinishReason.STOP, FinishReason.LENGTH})
"""Finish reasons of an answer. Anything else is a failure, and never kept."""
MAX_CLOCK_SKEW_S = 60.0
"""By how much the clocks of processes that share a store may differ."""


class Choice(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One sequence, whole."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    reason: FinishReason
    path: str
    usage: Usage
    stop: str | None


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A whole answer. `stored_s` is Unix time: processes that share a store do not share a monotonic clock."""

    stored_s: float
    choices: tuple[Choice, ...]

    @property
    def num_logprobs(self) -> int:
        return sum(len(choice.logprobs) for choice in self.choices)

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.stored_s)


class KeptChoice(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A choice as it is stored. Its log-probabilities are read and written one by one: there may be 100,000, and one
    call for all of them would stop every other thread."""

    text: str
    logprobs: tuple[msgspec.Raw, ...]
    reason: FinishReason
    path: str
    usage: Usage
    stop: str | None


class KeptEntry(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    stored_s: float
    choices: tuple[KeptChoice, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(KeptEntry)
_logprob_decoder = msgspec.msgpack.Decoder(TokenLogprob)


def encode_entry(entry: Entry) -> bytes:
    kept = [
        KeptChoice(
            text=choice.text,
            logprobs=tuple(msgspec.Raw(_encoder.encode(logprob)) for logprob in choice.logprobs),
            reason=choice.reason,
            path=choice.path,
            usage=choice.usage,
            stop=choice.stop,
        )
        for choice in entry.choices
    ]
    return _encoder.encode(KeptEntry(stored_s=entry.stored_s, choices=tuple(kept)))


def _read(kept: KeptChoice) -> Choice:
    """Raises: DecodeError, UnicodeDecodeError."""
    return Choice(
        text=kept.text,
        logprobs=tuple(_logprob_decoder.decode(logprob) for logprob in kept.logprobs),  # `map` would not let others run
        reason=kept.reason,
        path=kept.path,
        usage=kept.usage,
        stop=kept.stop,
    )


def decode_entry(value: bytes, num_choices: int, path: str) -> Entry | None:
    """None for anything but an answer of `path` with `num_choices` choices: other programs may write to the store."""
    try:
        kept = _decoder.decode(value)
        entry = Entry(stored_s=kept.stored_s, choices=tuple(map(_read, kept.choices)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(entry.choices) != num_choices or not entry.stored_s <= time.time() + MAX_CLOCK_SKEW_S:
        return None
    is_sound = math.isfinite(entry.stored_s) and all(_is_sound(choice, path) for choice in entry.choices)
    return entry if is_sound else None


def _is_sound(choice: Choice, path: str) -> bool:
    usage = choice.usage
    counts = (usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_completion_tokens)
    return choice.reason in GOOD_ENDS and choice.path == path and min(counts) >= 0


def entry_of(events: Iterable[tuple[int, SequenceEvent]], num_choices: int) -> Entry | None:
    """The answer that these (choice, event) pairs make up; None unless every choice has ended with an answer."""
    texts: list[list[str]] = [[] for _ in range(num_choices)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(num_choices)]
    finishes: dict[int, Finish] = {}
    for index, event in events:
        texts[index].append(event.text)
        logprobs[index].extend(event.logprobs)
        if event.finish is not None:
            finishes[index] = event.finish
    if len(finishes) < num_choices or any(finish.reason not in GOOD_ENDS for finish in finishes.values()):
        return None
    choices = [_choice("".join(texts[index]), tuple(logprobs[index]), finishes[index]) for index in range(num_choices)]
    return Entry(stored_s=time.time(), choices=tuple(choices))


def _choice(text: str, logprobs: tuple[TokenLogprob, ...], finish: Finish) -> Choice:
    return Choice(
        text=text, logprobs=logprobs, reason=finish.reason, path=finish.path, usage=finish.usage, stop=finish.stop
    )


def replay(entry: Entry) -> list[tuple[int, SequenceEvent]]:
    """The events that an engine would have sent, with all text of a choice in one."""
    now_s = time.monotonic()
    timings = Timings(queued_s=now_s, admitted_s=None, first_token_s=None, finished_s=now_s)
    return [
        (
            index,
            SequenceEvent(sequence_id="", text=choice.text, logprobs=choice.logprobs, finish=_finish(choice, timings)),
        )
        for index, choice in enumerate(entry.choices)
    ]


def _finish(choice: Choice, timings: Timings) -> Finish:
    return Finish(reason=choice.reason, path=choice.path, usage=choice.usage, timings=timings, stop=choice.stop)
