"""Requests in a closed loop, half of them streams, each looked at to its last byte. Plain sockets: a client library
would take more of the processor than the servers do."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PATIENCE_S = 60.0


@dataclass(slots=True, kw_only=True)
class Load:
    """`is_over` is asked before each request."""

    url: str
    concurrency: int = 24
    body: dict[str, object] = field(default_factory=dict)
    num_done: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    async def run(self, is_over: Callable[["Load"], bool]) -> "Load":
        await asyncio.gather(*(self._work(is_over) for _ in range(self.concurrency)))
        return self

    async def _work(self, is_over: Callable[["Load"], bool]) -> None:
        connection = Connection(self.url)
        while not is_over(self):
            number = self.num_done
            self.num_done += 1
            begin_s = time.monotonic()
            failure = await connection.ask(self._body(number))
            self.slowest_s = max(self.slowest_s, time.monotonic() - begin_s)
            if failure is not None:
                self.failures.append(failure)
        await connection.close()

    def _body(self, number: int) -> dict[str, object]:
        messages = [{"role": "user", "content": f"Say something about the number {number}."}]
        return {"model": "auto", "messages": messages, "stream": number % 2 == 0, **self.body}


class Connection:
    """Kept open from request to request, as clients do."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, body: dict[str, object]) -> str | None:
        """What went wrong, None if the whole answer came."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, text = await self._exchange(json.dumps(body).encode())
        except TimeoutError:
            await self.close()
            return f"nothing for {PATIENCE_S:.0f} s"
        except (OSError, EOFError, ValueError) as error:
            await self.close()
            return f"{type(error).__name__}: {error}"
        if status != 200:
            return f"status {status}: {text[:200]!r}"
        if body["stream"]:
            whole = text.rstrip().endswith(b"data: [DONE]") and b'"error"' not in text
        else:
            whole = b'"finish_reason"' in text and text.rstrip().endswith(b"}")
        return None if whole else f"incomplete: {text[-200:]!r}"

    async def _exchange(self, body: bytes) -> tuple[int, bytes]:
        if self._writer is None or self._reader is None or self._reader.at_eof():
            await self.close()
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        text = await self._read_body(headers)
        if headers.get("connection") == "close":
            await self.close()
        return int(lines[0].split()[1]), text

    async def _read_body(self, headers: dict[str, str]) -> bytes:
        assert self._reader is not None
        if "chunked" not in headers.get("transfer-encoding", ""):
            return await self._reader.readexactly(int(headers["content-length"]))
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readuntil(b"\r\n")
        return b"".join(parts)

    async def close(self) -> None:
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def until_count(count: int) -> Callable[[Load], bool]:
    return lambda load: load.num_done >= count
