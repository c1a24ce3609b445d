"""Sends one chat and reads its stream with a clock in hand. Imports gevent: for the generator's process alone.

The connection is geventhttpclient's, which locust's own FastHttpUser stands on; that user itself reads bodies in pieces
of fixed size, so that a token would be seen only when the next ones have filled a piece.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import gevent
import msgspec
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError

from loadtest.generator.chunks import CHAT, MOST_TEXT, brief, content_of, decode_chunk, note_arrival
from loadtest.measure.record import Record

OF_OURS = ("path", "task", "cache")
FAULTS = (OSError, HTTPParseError, gevent.Timeout)
"""What a connection may fail with."""


@dataclass(kw_only=True)
class StreamingClient:
    """One pool of connections to one server. `now_s` tells the seconds since the start of the run."""

    url: str
    now_s: Callable[[], float]
    most_connections: int = 4096
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        self._http = HTTPClient.from_url(
            self.url,
            concurrency=self.most_connections,
            network_timeout=self.patience_s,
            connection_timeout=10.0,
            headers={"Accept-Encoding": "identity"},
        )
        self._path = urlsplit(self.url).path.rstrip("/") + CHAT

    def send(self, body: Mapping[str, Any], headers: Mapping[str, str], record: Record, *, leaves: bool) -> str:
        """The answer's text; all that was seen goes into the record, failures too."""
        content = msgspec.json.encode(body)
        record.sent_s = self.now_s()
        text: list[str] = []
        try:
            with gevent.Timeout(self.patience_s):
                self._exchange(content, headers, record, text, leaves)
        except FAULTS as fault:
            record.failure = describe(fault, self.patience_s)
        record.ended_s = self.now_s()
        return "".join(text)

    def _exchange(
        self, content: bytes, headers: Mapping[str, str], record: Record, text: list[str], leaves: bool
    ) -> None:
        reply = self._http.request("POST", self._path, content, {"Content-Type": "application/json", **headers})
        try:
            record.status = reply.status_code
            record.path, record.routed_task, record.cache = (_header(reply, f"x-fenhe-{name}") for name in OF_OURS)
            if reply.status_code != 200:
                record.failure = f"status {reply.status_code}: {brief(reply.read())}"
            elif not str(reply.get("content-type")).startswith("text/event-stream"):
                record.failure = f"no stream but {reply.get('content-type')}: {brief(reply.read())}"
            else:
                self._read(reply, record, text, leaves)
        finally:
            reply.release()

    def _read(self, reply: Any, record: Record, text: list[str], leaves: bool) -> None:
        for data in events(reply):
            if data == b"[DONE]":
                break
            arrived_s = self.now_s()
            chunk = decode_chunk(data)
            if chunk.error is not None:
                record.failure = f"error in the stream: {brief(data)}"
                return
            if chunk.usage is not None:
                record.num_prompt_tokens = chunk.usage.prompt_tokens
                record.num_answer_tokens = chunk.usage.completion_tokens
            piece = content_of(chunk)
            if piece is None:
                continue
            text.append(piece)
            note_arrival(record, arrived_s)
            if leaves:
                record.has_left = True
                return
        else:
            record.failure = "the stream ended without [DONE]"
            return
        while not reply.message_complete and reply.readline(b"\n"):  # so that the connection can be used again
            pass
        if record.first_s is None:
            record.failure = "the stream had no content"
        elif not record.num_answer_tokens:
            record.num_answer_tokens, record.is_counted_by_chunks = len(record.gaps_s) + 1, True


def _header(reply: Any, name: str) -> str | None:
    value = reply.get(name)
    return value if isinstance(value, str) else None


def events(reply: Any) -> Iterator[bytes]:
    """The data of each event, as soon as its line is there. Comments and other fields are left out."""
    while line := reply.readline(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:].strip()


def describe(fault: BaseException, patience_s: float) -> str:
    if isinstance(fault, gevent.Timeout | TimeoutError):
        return f"no end within {patience_s:g} s"
    return f"{type(fault).__name__}: {str(fault)[:MOST_TEXT]}"
