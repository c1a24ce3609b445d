"""A light streaming client: it keeps bytes and their arrival times, and parses them after the job.

It shares the machine with the server it measures, so it does as little as possible while the job runs.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(slots=True, kw_only=True, frozen=True)
class StreamedAnswer:
    """`first_token_s` and `last_s` are on the `time.perf_counter` clock."""

    num_tokens: int
    num_cached_tokens: int
    first_token_s: float
    last_s: float


class RawExchange(asyncio.Protocol):
    """Sends one request and keeps the pieces of the answer with their arrival times, until the server closes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.pieces: list[tuple[float, bytes]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.closed.set_exception(exc)
        else:
            self.closed.set_result(None)


def http_request(port: int, path: str, body: dict[str, Any]) -> bytes:
    content = msgspec.json.encode(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


async def exchange(port: int, request: bytes) -> list[tuple[float, bytes]]:
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(lambda: RawExchange(request), "127.0.0.1", port)
    await protocol.closed
    return protocol.pieces


async def run_job(port: int, requests: list[bytes]) -> list[list[tuple[float, bytes]]]:
    return await asyncio.gather(*(exchange(port, request) for request in requests))


def read_answer(pieces: list[tuple[float, bytes]]) -> StreamedAnswer:
    """Count the tokens by the server's own usage, and find when the first text arrived.

    Raises: RuntimeError for anything but a complete stream.
    """
    if not pieces:
        raise RuntimeError("the server closed the connection without an answer")
    raw = b"".join(data for _, data in pieces)
    head, _, body = raw.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0]
    if b" 200 " not in status + b" ":
        raise RuntimeError(f"{status.decode()}: {body[:300].decode(errors='replace')}")
    events = read_events(body)
    if not events or events[-1][1] != b"[DONE]":
        raise RuntimeError(f"the stream ended early: {events[-1][1][:300]!r}" if events else "empty stream")
    usage, first_end = None, None
    for end, data in events[:-1]:
        chunk = msgspec.json.decode(data)
        if "error" in chunk:
            raise RuntimeError(f"the stream ended with an error: {chunk['error']}")
        usage = chunk.get("usage") or usage
        if first_end is None and any(choice["text"] for choice in chunk["choices"]):
            first_end = end
    if usage is None or first_end is None:
        raise RuntimeError("the stream had no text or no usage")
    return StreamedAnswer(
        num_tokens=usage["completion_tokens"],
        num_cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        first_token_s=arrival_of(pieces, len(head) + 4 + first_end),
        last_s=pieces[-1][0],
    )


def read_events(body: bytes) -> list[tuple[int, bytes]]:
    """Undo the chunked transfer coding, then split events. Returns (offset in `body` of the last byte, data)."""
    events: list[tuple[int, bytes]] = []
    pending = b""
    at = 0
    while True:
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end].split(b";")[0], 16)
        if size == 0:
            return events
        at = line_end + 2 + size + 2
        pending += body[line_end + 2 : line_end + 2 + size]
        *complete, pending = pending.split(b"\n\n")
        events += [(at, event.removeprefix(b"data: ")) for event in complete]


def arrival_of(pieces: list[tuple[float, bytes]], offset: int) -> float:
    """When the byte before `offset` had arrived."""
    num_bytes = 0
    for moment, data in pieces:
        num_bytes += len(data)
        if num_bytes >= offset - 2:  # the chunk's closing line end may come alone
            return moment
    return pieces[-1][0]
