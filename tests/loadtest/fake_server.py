"""A server that streams chats as told, well or badly, in a thread of the test: what a load test must see."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.listening import stop_listening

WELL = "well"
BUSY = "busy"
"""429."""
NO_STREAM = "no stream"
SILENT = "silent"
"""Takes the request and never answers."""
CUT = "cut"
"""Closes the connection in the middle of the stream."""
ERROR = "error"
"""An error within the stream."""
EMPTY = "empty"
"""No content."""
NO_USAGE = "no usage"


@dataclass(slots=True, kw_only=True)
class FakeServer:
    """`manner` says how it answers, after `num_good` requests that it answers well. `line_end` is the one of its
    events."""

    manner: str = WELL
    num_good: int = 0
    first_s: float = 0.01
    gap_s: float = 0.002
    line_end: str = "\n"
    port: int = 0
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_cut_off: int = 0
    _seen: set[str] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = [line.partition(": ") for line in head.splitlines()[1:] if line]
                headers = {name.lower(): value for name, _, value in lines}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.bodies.append(body)
                self.headers.append(headers)
                manner = WELL if len(self.bodies) <= self.num_good else self.manner
                if not await self._answer(writer, body, manner):
                    return

    async def _answer(self, writer: asyncio.StreamWriter, body: dict[str, Any], manner: str) -> bool:
        """Whether the connection goes on."""
        if manner == SILENT:
            await asyncio.sleep(60)
        if manner in (BUSY, NO_STREAM):
            status = "429 Too Many Requests\r\nretry-after: 7" if manner == BUSY else "200 OK"
            await self._send(
                writer, f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
            )
            return True
        text = json.dumps(body["messages"])
        cache = "hit" if text in self._seen else "miss"
        self._seen.add(text)
        head = f"content-type: text/event-stream\r\nx-fenhe-path: full\r\nx-fenhe-task: math\r\nx-fenhe-cache: {cache}"
        await self._send(writer, f"HTTP/1.1 200 OK\r\n{head}\r\ntransfer-encoding: chunked\r\n\r\n")
        await self._event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        try:
            return await self._stream(writer, body["max_tokens"], manner)
        except ConnectionError:
            self.num_cut_off += 1
            raise

    async def _stream(self, writer: asyncio.StreamWriter, num_tokens: int, manner: str) -> bool:
        await asyncio.sleep(self.first_s)
        for number in range(0 if manner == EMPTY else num_tokens):
            if number and manner in (CUT, ERROR):
                if manner == ERROR:
                    await self._event(writer, {"error": {"message": "broken", "type": "server_error"}})
                return False
            await self._event(writer, {"choices": [{"index": 0, "delta": {"content": f"t{number} "}}]})
            await asyncio.sleep(self.gap_s)
        await self._event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if manner != NO_USAGE:
            await self._event(writer, {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": num_tokens}})
        await self._event(writer, "[DONE]")
        await self._send(writer, "0\r\n\r\n")
        return True

    async def _event(self, writer: asyncio.StreamWriter, data: Any) -> None:
        data = data if isinstance(data, str) else json.dumps(data)
        event = f"data: {data}{self.line_end}{self.line_end}"
        await self._send(writer, f"{len(event):x}\r\n{event}\r\n")

    async def _send(self, writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(text.encode())
        await writer.drain()


@contextlib.contextmanager
def running(server: FakeServer) -> Iterator[FakeServer]:
    """On a free loopback port, which `server.url` then has."""
    loop = asyncio.new_event_loop()
    listening, stopping = threading.Event(), asyncio.Event()

    async def run() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", server.port)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        listening.set()
        await stopping.wait()
        await stop_listening(listener)

    async def run_and_clear() -> None:
        await run()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.sleep(0.02)  # transports close their sockets on the loop's next turn

    thread = threading.Thread(target=lambda: loop.run_until_complete(run_and_clear()))
    thread.start()
    listening.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


if __name__ == "__main__":
    import sys
    import time

    given = dict(part.split("=") for part in sys.argv[2:])
    num_good, port = (int(given.get(name, 0)) for name in ("good", "port"))
    with running(FakeServer(manner=sys.argv[1], num_good=num_good, port=port)) as fake:
        print(fake.url, flush=True)
        time.sleep(float(given.get("seconds", 30)))
