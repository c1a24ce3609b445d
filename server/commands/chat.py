"""`fenhe chat`: a conversation with a server, streamed to the terminal. Standard library only."""

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from models.errors import Unavailable
from server.commands.client import add_api_key, connect, connection_failure, find_api_key, headers, read_refusal

DEFAULT_URL = "http://127.0.0.1:8000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="one question; without it: a conversation")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"where the server is (default {DEFAULT_URL})")
    add_api_key(parser)
    parser.add_argument("--model", default="auto", help="model id (default auto)")
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument(
        "--temperature", type=float, help="0: the likeliest answer (default: what the model's authors recommend)"
    )
    parser.add_argument("--max-tokens", type=int, help="longest answer (default: as long as the context lasts)")


def run(arguments: argparse.Namespace) -> int:
    options = ChatOptions(
        url=arguments.url,
        api_key=find_api_key(arguments.api_key, os.environ),
        model=arguments.model,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
        system=arguments.system,
    )
    return converse(options, arguments.prompt, sys.stdin, sys.stdout)


@dataclass(slots=True, kw_only=True, frozen=True)
class ChatOptions:
    url: str
    api_key: str | None = field(default=None, repr=False)
    model: str = "auto"
    temperature: float | None = None
    max_tokens: int | None = None
    system: str | None = None


@dataclass(slots=True, kw_only=True)
class Reply:
    """What one answer was, and how fast: tokens after the first over the time they took."""

    text: str = ""
    path: str = "?"
    num_tokens: int = 0
    started_s: float
    first_s: float | None = None
    last_s: float = 0.0

    def summary(self) -> str:
        if self.first_s is None:
            return f"path {self.path}, no text"
        first_ms = (self.first_s - self.started_s) * 1000
        speed = ""
        if self.num_tokens > 1 and self.last_s > self.first_s:
            speed = f", {(self.num_tokens - 1) / (self.last_s - self.first_s):.1f} tokens/s"
        return f"path {self.path}, {self.num_tokens} tokens, first after {first_ms:.0f} ms{speed}"


def converse(options: ChatOptions, prompt: str | None, lines: TextIO, out: TextIO) -> int:
    """Ask `prompt`, or without one every line of `lines`.

    Raises: ConfigError for a URL that cannot be used; Unavailable without a server; BadRequest; Unauthorized.
    """
    messages = [] if options.system is None else [{"role": "system", "content": options.system}]
    for question in [prompt] if prompt is not None else _questions(lines, out):
        messages.append({"role": "user", "content": question})
        reply = ask(options, messages, out)
        messages.append({"role": "assistant", "content": reply.text})
        out.write(f"\n[{reply.summary()}]\n")
        out.flush()
    return 0


def _questions(lines: TextIO, out: TextIO) -> Iterator[str]:
    while True:
        if lines.isatty():
            out.write("> ")
            out.flush()
        line = lines.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def ask(options: ChatOptions, messages: list[dict[str, str]], out: TextIO) -> Reply:
    """Send the conversation and write the answer as it comes."""
    body = {
        "model": options.model,
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
        reply.path = response.headers.get("x-fenhe-path", "?")
        for chunk in _chunks(response):
            _take(chunk, reply, out)
    except (OSError, http.client.HTTPException) as error:
        raise connection_failure(options.url, error) from None
    finally:
        connection.close()
    return reply


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
