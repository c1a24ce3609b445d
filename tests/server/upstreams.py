"""Upstreams for tests: a plain socket server that answers as it is told, and remote students of them."""

import asyncio
import contextlib
import functools
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engines.remote.config import RemoteConfig
from server.settings.config import StudentConfig
from server.students.open_student import Opened, open_remote
from tests.listening import stop_listening

CHUNK = {"id": "up-1", "object": "chat.completion.chunk", "created": 5, "model": "their-model"}
WHOLE = {
    "id": "up-1",
    "object": "chat.completion",
    "created": 5,
    "model": "their-model",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi there"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
}


def chunk(text: str | None = None, finish: str | None = None, **fields: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({**CHUNK, "choices": choices, **fields}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
USAGE_CHUNK = b"data: " + json.dumps({**CHUNK, "choices": [], "usage": USAGE}).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"
GOOD_STREAM = chunk("Hel") + chunk("lo") + chunk(finish="stop") + USAGE_CHUNK + DONE


@dataclass(slots=True, kw_only=True)
class Got:
    """A request as it reached an upstream."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Answer = Callable[[Got, asyncio.StreamWriter], Awaitable[None]]


def reply(status: int, body: Any, headers: str = "", kind: str = "application/json") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(raw)}\r\n{headers}\r\n"
    return head.encode() + raw


def stream_head(kind: str = "text/event-stream") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode()


def saying(*pieces: bytes, delay_s: float = 0.0) -> Answer:
    """Writes these bytes and closes the connection."""

    async def answer(got: Got, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(delay_s)
        writer.close()

    return answer


def streaming(events: bytes, **options: Any) -> Answer:
    return saying(stream_head(), events, **options)


async def well(got: Got, writer: asyncio.StreamWriter) -> None:
    """What an upstream should say."""
    if isinstance(got.body, dict) and got.body.get("stream"):
        await streaming(GOOD_STREAM)(got, writer)
    else:
        await saying(reply(200, WHOLE))(got, writer)


async def hang(got: Got, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


@dataclass(slots=True)
class FakeUpstream:
    """`answer` may be changed at any time. `left` counts connections that the other side closed while it answered."""

    answer: Answer = well
    models: list[str] | None = None
    port: int = 0
    got: list[Got] = field(default_factory=list)
    num_left: int = 0
    hides_models: bool = False
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            got = await _read(reader)
            if got.path.endswith("/models"):
                while self.hides_models:
                    await asyncio.sleep(0.05)
                listed = {"object": "list", "data": [{"id": name} for name in self.models or []]}
                await saying(reply(404, {}) if self.models is None else reply(200, listed))(got, writer)
                return
            self.got.append(got)
            answering = asyncio.ensure_future(self.answer(got, writer))
            leaving = asyncio.ensure_future(reader.read())
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self.num_left += not answering.done()
            answering.cancel()
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await answering
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(TimeoutError, ConnectionError, asyncio.CancelledError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)
            writer.transport.abort()
            self.writers.discard(writer)


async def _read(reader: asyncio.StreamReader) -> Got:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Got(method=method, path=path, headers=headers, body=json.loads(raw) if raw else None)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for all fakes: connections may end after the test that made them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


@contextlib.contextmanager
def upstream(answer: Answer = well, models: list[str] | None = None, port: int = 0) -> Iterator[FakeUpstream]:
    """A fake upstream on a loopback port, until the end of the block."""
    fake = FakeUpstream(answer, models)

    async def begin() -> asyncio.Server:
        return await asyncio.start_server(fake.serve, "127.0.0.1", port)

    async def end(server: asyncio.Server) -> None:
        await stop_listening(server)
        for writer in tuple(fake.writers):
            writer.transport.abort()

    server = asyncio.run_coroutine_threadsafe(begin(), _loop()).result(10)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(end(server), _loop()).result(10)


def remote(*urls: str, name: str = "far", environ: dict[str, str] | None = None, **options: Any) -> Opened:
    """A remote student of these upstreams."""
    settings = {"health_interval_s": 0.1, "pause_s": 0.3, "model": None if "paths" in options else "their-model"}
    config = RemoteConfig(urls=urls, **(settings | options))
    assert not config.problems()
    return open_remote(StudentConfig(name=name, engine="remote", remote=config), environ or {})
