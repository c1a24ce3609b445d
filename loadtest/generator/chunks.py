"""A streamed chat as every generator asks for it, and its events as they read them."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from loadtest.measure.record import Record

CHAT = "/v1/chat/completions"
MOST_TEXT = 200


class Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    delta: Delta = msgspec.field(default_factory=Delta)


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


decode_chunk = msgspec.json.Decoder(Chunk).decode


def content_of(chunk: Chunk) -> str | None:
    """None: nothing of the answer, such as the chunk that names the role."""
    if not chunk.choices:
        return None
    delta = chunk.choices[0].delta
    return delta.content or ("" if delta.tool_calls else None)


def note_arrival(record: Record, arrived_s: float) -> None:
    if record.last_s is None:
        record.first_s = arrived_s
    else:
        record.gaps_s.append(arrived_s - record.last_s)
    record.last_s = arrived_s


def brief(body: bytes) -> str:
    """For an error message."""
    return " ".join(body[:MOST_TEXT].decode(errors="replace").split())


def clock(start_s: float) -> Callable[[], float]:
    """The seconds since `start_s` on `time.perf_counter`."""
    return lambda: time.perf_counter() - start_s
