"""One answer for `fenhe chat`: asked for, streamed to the terminal, and what it was. Standard library only."""

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from models.errors import Unavailable
from server.commands.client import connect, connection_failure, headers, read_refusal

Messages = list[dict[str, str]]


@dataclass(slots=True, kw_only=True)
class ChatOptions:
    """What every request of a conversation says; `model` changes when the user asks for it."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    model: str = "auto"
    temperature: float | None = None
    max_tokens: int | None = None
    system: str | None = None


@dataclass(slots=True, kw_only=True)
class Reply:
    """What one answer was, and how fast: tokens after the first over the time they took. `compute` is the share of the
    full path's, `is_stopped` says that the user stopped it. What the server did not say is None.
    """

    text: str = ""
    path: str = "?"
    student: str | None = None
    task: str | None = None
    confidence: float | None = None
    compute: float | None = None
    cache: str | None = None
    num_tokens: int = 0
    started_s: float
    first_s: float | None = None
    last_s: float = 0.0
    is_stopped: bool = False

    def figures(self) -> list[str]:
        """Tokens, time to the first and speed, each where it is known."""
        if self.first_s is None:
            return ["no text"]
        told = [f"{self.num_tokens} tokens"] if self.num_tokens else []
        told.append(f"first after {(self.first_s - self.started_s) * 1000:.0f} ms")
        if self.num_tokens > 1 and self.last_s > self.first_s:
            told.append(f"{(self.num_tokens - 1) / (self.last_s - self.first_s):.1f} tokens/s")
        return told

    def summary(self) -> str:
        return ", ".join([f"path {self.path}", *self.figures(), *(["stopped"] if self.is_stopped else [])])


def ask(options: ChatOptions, messages: Messages, out: TextIO, *, model: str | None = None) -> Reply:
    """Send the conversation and write the answer as it comes. Ctrl-C ends the answer alone: what came is kept, and the
    server, whose client has gone, stops too.

    Raises: ConfigError for a URL that cannot be used; Unavailable without a server; BadRequest; Unauthorized.
    """
    body = {
        "model": model or options.model,
        "messages": messages,
        "temperature": options.temperature,
        "max_completion_tokens": options.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection, base = connect(options.url)
    reply = Reply(started_s=time.monotonic())
    try:
        connection.request("POST", f"{base}/v1/chat/completions", json.dumps(body), headers(options.api_key))
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise read_refusal(response.status, response.read())
        _read_headers(response, reply)
        for chunk in _chunks(response):
            _take(chunk, reply, out)
    except KeyboardInterrupt:
        reply.is_stopped = True
    except (OSError, http.client.HTTPException) as error:
        raise connection_failure(options.url, error) from None
    finally:
        connection.close()
    return reply


def _read_headers(response: http.client.HTTPResponse, reply: Reply) -> None:
    told = {name: response.headers.get(f"x-fenhe-{name}") for name in ("student", "task", "cache")}
    reply.student, reply.task, reply.cache = told["student"], told["task"], told["cache"]
    reply.path = response.headers.get("x-fenhe-path", "?")
    reply.confidence = _number(response.headers.get("x-fenhe-confidence"))
    reply.compute = _number(response.headers.get("x-fenhe-compute"))


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise Unavailable(chunk["error"]["message"])
        yield chunk


def _take(chunk: dict[str, Any], reply: Reply, out: TextIO) -> None:
    if chunk.get("usage"):
        reply.num_tokens = chunk["usage"]["completion_tokens"]
    for choice in chunk["choices"]:
        text = choice["delta"].get("content") or ""
        if text:
            reply.last_s = time.monotonic()
            reply.first_s = reply.first_s or reply.last_s
            reply.text += text
            out.write(text)
            out.flush()
        if "fenhe" in choice:
            reply.path = choice["fenhe"]["path"]
