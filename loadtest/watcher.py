"""`python -m loadtest.watcher URL [KEY]`: another client, in a process of its own, and how long it has to wait.

It asks for `/health` every few milliseconds, and with a key it also reads one stream after the other. For each line
on its standard input it prints a JSON object of what it saw since the last one.
"""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from loadtest.soak_kinds import CHAT

EVERY_S = 0.003
STREAM_TOKENS = 200
PROBE = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@dataclass(slots=True, kw_only=True)
class Waits:
    """`longest_s` of a probe; `gaps_s` between events of a stream; `failures` of both."""

    longest_s: float = 0.0
    num_probes: int = 0
    gaps_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        gaps = sorted(self.gaps_s)
        return {
            "longest_ms": round(self.longest_s * 1000, 1),
            "num_probes": self.num_probes,
            "num_gaps": len(gaps),
            "p50_gap_ms": round(statistics.median(gaps) * 1000, 1) if gaps else None,
            "p99_gap_ms": round(gaps[min(int(len(gaps) * 0.99), len(gaps) - 1)] * 1000, 1) if gaps else None,
            "failures": self.failures[:5],
        }


class Client:
    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._key = key
        self._waits = Waits()
        self._asked_s: float | None = None

    def take(self) -> dict[str, Any]:
        """What was seen since the last call; a probe that is still waiting counts as long as it has waited."""
        if self._asked_s is not None:
            self._note_probe(time.monotonic() - self._asked_s)
            self._asked_s = time.monotonic()
        waits, self._waits = self._waits, Waits()
        return waits.figures()

    def _note_probe(self, seconds: float) -> None:
        self._waits.num_probes += 1
        self._waits.longest_s = max(self._waits.longest_s, seconds)

    async def probe(self) -> None:
        parts = urlsplit(self._url)
        while True:
            try:
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                with contextlib.closing(writer):
                    while True:
                        await self._ask(reader, writer)
                        await asyncio.sleep(EVERY_S)
            except (OSError, asyncio.IncompleteReadError) as error:
                self._waits.failures.append(f"probe: {type(error).__name__}")
                await asyncio.sleep(0.05)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._asked_s = time.monotonic()
        writer.write(PROBE)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        await reader.readexactly(int(length.partition(b":")[2]))
        self._note_probe(time.monotonic() - self._asked_s)
        self._asked_s = None
        if not head.startswith(b"HTTP/1.1 200"):
            self._waits.failures.append(f"probe: {head[9:12].decode()}")

    async def read_streams(self) -> None:
        headers = {"authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=120.0) as client:
            while True:
                try:
                    await self._read_stream(client)
                except httpx.HTTPError as error:
                    self._waits.failures.append(f"stream: {type(error).__name__}")
                    await asyncio.sleep(0.05)

    async def _read_stream(self, client: httpx.AsyncClient) -> None:
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": "Tell me about the winter."}],
            "max_tokens": STREAM_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "fenhe": {"cache": False},
        }
        last_s = None
        async with client.stream("POST", CHAT, json=body) as response:
            if response.status_code != 200:
                self._waits.failures.append(f"stream: {response.status_code}")
                await asyncio.sleep(0.05)
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    now_s = time.monotonic()
                    if last_s is not None:
                        self._waits.gaps_s.append(now_s - last_s)
                    last_s = now_s


async def watch(url: str, key: str | None) -> None:
    """Until standard input ends."""
    client = Client(url, key)
    tasks = [asyncio.create_task(client.probe())]
    if key is not None:
        tasks.append(asyncio.create_task(client.read_streams()))
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(client.take()), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Watcher:
    """That process, seen from the one that started it."""

    def __init__(self, url: str, key: str | None = None) -> None:
        command = [sys.executable, "-m", "loadtest.watcher", url, *([] if key is None else [key])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def take(self) -> dict[str, Any]:
        """What it saw since the last call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seen: dict[str, Any] = json.loads(self._process.stdout.readline())
        return seen

    def close(self) -> None:
        self._process.communicate(timeout=20)


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
