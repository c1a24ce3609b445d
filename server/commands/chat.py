"""`fenhe chat`: a conversation with a server, streamed to the terminal. Standard library only."""

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO
from urllib.parse import urlsplit

from models.errors import BadRequest, ConfigError, ServingError, Unauthorized, Unavailable

TIMEOUT_S = 600.0
KEY_VARIABLES = ("FENHE_API_KEY", "OPENAI_API_KEY")
"""Where the key is when no option gives one: the first that is there counts."""
HOW_TO_GIVE_A_KEY = f"give yours with --api-key, or in {' or '.join(KEY_VARIABLES)}"


@dataclass(slots=True, kw_only=True, frozen=True)
class ChatOptions:
    url: str
    api_key: str | None = field(default=None, repr=False)
    model: str = "auto"
    temperature: float = 0.0
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


def find_api_key(option: str | None, environ: Mapping[str, str]) -> str | None:
    """The key of the option, else that of the first variable that holds one.

    Raises: ConfigError for a key that no header can carry; it is not shown.
    """
    given = [option, *(environ.get(name) for name in KEY_VARIABLES)]
    key = next((one.strip() for one in given if one and one.strip()), None)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError("the API key has characters that no key has: only ASCII, and no line breaks")
    return key


def converse(options: ChatOptions, prompt: str | None, lines: TextIO, out: TextIO) -> int:
    """Ask `prompt`, or what `lines` says line by line.

    Raises: ConfigError for a URL nobody can use; Unavailable when there is no server; BadRequest; Unauthorized.
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
        connection.request("POST", f"{base}/v1/chat/completions", json.dumps(body), _headers(options.api_key))
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


def post(url: str, path: str, body: object, api_key: str | None = None) -> bytes:
    """The body of a 200 answer. Raises: BadRequest, Unauthorized, Unavailable."""
    connection, base = connect(url)
    try:
        connection.request("POST", f"{base}{path}", json.dumps(body), _headers(api_key))
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise connection_failure(url, error) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise read_refusal(response.status, answer)
    return answer


def _headers(api_key: str | None) -> dict[str, str]:
    key = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {"content-type": "application/json", **key}


def connection_failure(url: str, error: Exception) -> Unavailable:
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(f"no server answers at {url}; start one with `fenhe serve`")
    return Unavailable(f"the connection to {url} failed: {error or type(error).__name__}")


def connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection to a server and the prefix of its addresses. Raises: ConfigError for a URL nobody can use."""
    parts = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise ConfigError(f"{url!r} is no server address; give one like http://127.0.0.1:8000")
    base = parts.path.rstrip("/").removesuffix("/v1")
    return kinds[parts.scheme](parts.hostname, parts.port, timeout=TIMEOUT_S), base


def read_refusal(status: int, body: bytes) -> ServingError:
    """The error in a response, or that there is none in this API's shape."""
    try:
        message = json.loads(body)["error"]["message"]
        if status == http.client.UNAUTHORIZED:
            return Unauthorized(f"{message}; {HOW_TO_GIVE_A_KEY}")
        return BadRequest(message)
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"the server answered {status}, and not as this API does; is the URL right?")


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
