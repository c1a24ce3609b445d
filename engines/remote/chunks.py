"""From the bytes of an upstream's answer to its chunks, and what the engine needs to know of them.

Source: WHATWG HTML, section 9.2.6, server-sent events; OpenAI API reference, streaming.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from engines.sequence import FinishReason

DONE = b"[DONE]"
MAX_EVENT_BYTES = 16 * 1024 * 1024
"""No event of a stream may be longer: what an upstream sends must not fill this machine's memory."""

LAST_EVENTS = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled", "message_stop"}
)
"""Types of the events that end the streams of /v1/responses and /v1/messages, which have no `[DONE]`."""
CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens"})
"""How an answer ends that was cut off at its limit, in every API."""
FAILED = frozenset({"error", "abort", "failed", "cancelled", "response.failed", "response.cancelled"})
"""Types of events, states of a response and reasons to finish that are no answer, although the status is 200."""


class Garbled(Exception):
    """The upstream sent what is no answer. The message says what."""


class EventReader:
    """Cuts a stream of server-sent events into their data. Feed it bytes as they come, in whatever pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._num_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that this piece completes. Raises: Garbled for an event that is too long."""
        lines = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) + self._num_bytes > MAX_EVENT_BYTES:
            raise Garbled(f"an event of its stream is longer than {MAX_EVENT_BYTES} bytes")
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                data = line[6:] if line[5:6] == b" " else line[5:]
                self._data.append(data)
                self._num_bytes += len(data)
            elif not line.strip(b"\r"):
                events += self._finished()
        return events

    def close(self) -> list[bytes]:
        """The last event of a stream that ends without a blank line."""
        return self.feed(b"\n\n")

    def _finished(self) -> list[bytes]:
        data, self._data, self._num_bytes = self._data, [], 0
        return [b"\n".join(data)] if data else []


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Under the names of chat completions, and of responses and messages."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None


class _Inner(msgspec.Struct):
    """The `response` of a response's event, the `message` of a message's."""

    usage: _Usage | None = None
    status: str | None = None
    error: Any = None
    incomplete_details: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class Glance(msgspec.Struct):
    """What the engine reads of a chunk, or of a whole answer; everything else passes unread."""

    type: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    response: _Inner | None = None
    message: _Inner | None = None
    delta: _Delta | None = None
    stop_reason: str | None = None
    status: str | None = None
    incomplete_details: dict[str, Any] | None = None

    @property
    def is_failure(self) -> bool:
        """It tells an error, in whichever of the three APIs: an answer with this in it is none."""
        inner = self.response or self.message or _Inner()
        said = [
            self.type,
            self.status,
            inner.status,
            self.stop_reason,
            *(one.finish_reason for one in self.choices or ()),
        ]
        return self.error is not None or inner.error is not None or not FAILED.isdisjoint(said)


_decoder = msgspec.json.Decoder(Glance)
_any_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def glance(data: bytes) -> Glance:
    """Raises: Garbled for what is no JSON object. A field of an unknown form is not read."""
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        return _glance_slowly(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(f"it sent what is no JSON: {error}") from None


def _glance_slowly(data: bytes) -> Glance:
    try:
        fields = _any_object.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Garbled("it sent what is no JSON object") from None
    found = Glance()
    for name in Glance.__struct_fields__:
        if name in fields:
            try:
                part = _decoder.decode(b'{"' + name.encode() + b'":' + bytes(fields[name]) + b"}")
            except msgspec.DecodeError:
                continue
            setattr(found, name, getattr(part, name))
    return found


@dataclass(slots=True)
class Tally:
    """What an answer has come to so far."""

    num_prompt_tokens: int | None = None
    num_cached_tokens: int = 0
    num_completion_tokens: int | None = None
    num_chunks: int = 0
    reason: FinishReason = FinishReason.STOP
    is_over: bool = False

    def add(self, seen: Glance) -> None:
        """Count a chunk, or a whole answer."""
        self.num_chunks += 1
        for part in (seen, seen.response, seen.message):
            if part is not None:
                self._add_usage(part.usage)
                self._note_end((part.incomplete_details or {}).get("reason"))
        for choice in seen.choices or ():
            self._note_end(choice.finish_reason)
        self._note_end(seen.stop_reason or (None if seen.delta is None else seen.delta.stop_reason))
        if seen.type in LAST_EVENTS:
            self.is_over = True

    @property
    def num_tokens(self) -> int:
        """Of the answer: as the upstream says, or its chunks where it does not."""
        return self.num_chunks if self.num_completion_tokens is None else self.num_completion_tokens

    def _add_usage(self, usage: _Usage | None) -> None:
        if usage is None:
            return
        prompt = usage.prompt_tokens if usage.input_tokens is None else usage.input_tokens
        answer = usage.completion_tokens if usage.output_tokens is None else usage.output_tokens
        details = usage.prompt_tokens_details or usage.input_tokens_details
        cached = usage.cache_read_input_tokens if details is None else details.cached_tokens
        self.num_prompt_tokens = self.num_prompt_tokens if prompt is None else max(0, prompt)
        self.num_completion_tokens = self.num_completion_tokens if answer is None else max(0, answer)
        self.num_cached_tokens = self.num_cached_tokens if cached is None else max(0, cached)

    def _note_end(self, reason: object) -> None:
        """Some upstreams send no `[DONE]`: then it is the end of a choice that says an answer is whole."""
        if isinstance(reason, str):
            self.is_over = True
            if reason in CUT_OFF:
                self.reason = FinishReason.LENGTH
