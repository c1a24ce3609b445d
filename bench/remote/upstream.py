"""An upstream that computes nothing: it streams chunks at set times, each with the time at which it was sent.

Run as a program: `python -m bench.remote.upstream FIRST_S GAP_S` prints its port.
"""

import asyncio
import sys
import time
from typing import cast

import msgspec
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODEL = "scripted"


class Answering(asyncio.Protocol):
    """One connection, for one request after another."""

    def __init__(self, first_s: float, gap_s: float) -> None:
        self._first_s, self._gap_s = first_s, gap_s
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None
        self._num_left = 0
        self._closes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _length_in(head)
        if not found or len(body) < length:
            return
        self._received = body[length:]
        if head.startswith(b"GET"):
            self._write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        self._closes = b"connection: close" in head.lower()
        self._num_left = msgspec.json.decode(body[:length])["max_tokens"]
        self._write(HEAD)
        loop = asyncio.get_running_loop()
        loop.call_later(self._first_s, self._say, loop.time() + self._first_s)

    def _say(self, due_s: float) -> None:
        """The next chunk, at its own time: a late one does not delay those behind it."""
        self._num_left -= 1
        self._event(_chunk({"content": f"{time.monotonic():.6f} "}, None))
        loop = asyncio.get_running_loop()
        if self._num_left:
            loop.call_at(due_s + self._gap_s, self._say, due_s + self._gap_s)
            return
        self._event(_chunk({}, "length"))
        self._event(b"data: [DONE]\n\n")
        self._write(b"0\r\n\r\n")
        if self._closes and self._transport is not None:
            self._transport.close()

    def _event(self, event: bytes) -> None:
        self._write(b"%x\r\n%s\r\n" % (len(event), event))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _length_in(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _chunk(delta: dict[str, str], finish: str | None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


async def main(first_s: float, gap_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(first_s, gap_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]), float(sys.argv[2])))
