"""Streams in a closed loop, read by one thread that does nothing else: for delays of a millisecond, of which a
generator with a greenlet per user adds several itself.

Each stream keeps its connection. Bodies are made before the clock starts, arrivals are noted when the bytes are read.
"""

import argparse
import gc
import json
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from loadtest.generator.chunks import CHAT, brief, clock, content_of, decode_chunk, note_arrival
from loadtest.measure.record import Record
from loadtest.traffic.reading import read_workload
from loadtest.traffic.sessions import SessionPlan

PATIENCE_S = 60.0
PIECE_BYTES = 65536


@dataclass(slots=True, kw_only=True, frozen=True)
class Order:
    """A request, ready to be sent."""

    task: str
    content: bytes


def orders(plan: SessionPlan, url: str) -> Iterator[Order]:
    parts = urlsplit(url)
    head = f"POST {parts.path.rstrip('/')}{CHAT} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    index = 0
    while True:
        session = plan.session(index)
        body = msgspec.json.encode(plan.body(session, 0, []))
        yield Order(task=session.task, content=f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        index += 1


class TimedStream:
    """One connection, and the request that runs on it. `note` is given each record once it is over."""

    def __init__(self, address: tuple[str, int], now_s: Callable[[], float], note: Callable[[Record], None]) -> None:
        self._address, self._now_s, self._note = address, now_s, note
        self.socket = self._connect()
        self.record: Record | None = None

    def send(self, order: Order, index: int) -> None:
        """Raises: OSError."""
        self._parser = httptools.HttpResponseParser(self)
        self._line = b""
        self._is_done = False
        now_s = self._now_s()
        self.record = Record(session=index, task=order.task, scheduled_s=now_s, sent_s=now_s)
        self.socket.sendall(order.content)

    def read(self) -> None:
        """What has come. A fault ends the request, and the connection."""
        try:
            data = self.socket.recv(PIECE_BYTES)
        except OSError as fault:
            return self.fail(f"{type(fault).__name__}: {fault}")
        self._arrived_s = self._now_s()
        if not data:
            return self.fail("the connection was closed")
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, msgspec.DecodeError) as fault:
            self.fail(f"{type(fault).__name__}: {fault}")

    def fail(self, why: str) -> None:
        if self.record is not None:
            self.record.failure = self.record.failure or why
            self._end(self.record)
        self.socket.close()

    def reconnect(self) -> None:
        """Raises: OSError."""
        self.socket = self._connect()

    @property
    def is_closed(self) -> bool:
        return self.socket.fileno() < 0

    def on_headers_complete(self) -> None:
        assert self.record is not None
        self.record.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        *lines, self._line = (self._line + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip())

    def on_message_complete(self) -> None:
        record = self.record
        if record is None:
            return
        if record.status != 200:
            record.failure = f"status {record.status}: {brief(self._line)}"
        elif record.failure is None and not self._is_done:
            record.failure = "the stream ended without [DONE]"
        elif record.failure is None and record.first_s is None:
            record.failure = "the stream had no content"
        self._end(record)

    def _read_event(self, data: bytes) -> None:
        assert self.record is not None
        if data == b"[DONE]":
            self._is_done = True
            return
        chunk = decode_chunk(data)
        if chunk.error is not None:
            self.record.failure = f"error in the stream: {brief(data)}"
        if chunk.usage is not None:
            self.record.num_prompt_tokens = chunk.usage.prompt_tokens
            self.record.num_answer_tokens = chunk.usage.completion_tokens
        if content_of(chunk) is not None:
            note_arrival(self.record, self._arrived_s)

    def _end(self, record: Record) -> None:
        record.ended_s = self._now_s()
        self.record = None
        self._note(record)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, timeout=PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@dataclass(kw_only=True)
class TimedRun:
    """`num_streams` streams, which begin one after the other within `ramp_s` and begin no request after `end_s`. What
    has not ended `drain_s` later has failed.
    """

    url: str
    orders: Iterator[Order]
    num_streams: int
    ramp_s: float
    end_s: float
    drain_s: float = PATIENCE_S
    records: list[Record] = field(default_factory=list)
    _now_s: Callable[[], float] = field(init=False)

    def play(self) -> None:
        """Raises: OSError: the server cannot be reached."""
        parts = urlsplit(self.url)
        address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._num_sent = 0
        self._now_s = clock(time.perf_counter())
        streams = [TimedStream(address, self._now_s, self.records.append) for _ in range(self.num_streams)]
        idle = list(streams)
        with selectors.DefaultSelector() as selector:
            while self._now_s() < self.end_s or any(stream.record for stream in streams):
                self._begin(selector, idle)
                for key, _ in selector.select(timeout=0.001 if idle else 0.1):
                    self._serve(selector, key.data)
                if self._now_s() > self.end_s + self.drain_s:
                    break
        for stream in streams:
            stream.fail(f"no end within {self.drain_s:g} s after the last request began")

    def _begin(self, selector: selectors.BaseSelector, idle: list[TimedStream]) -> None:
        num_begun = self.num_streams - len(idle)
        while idle and num_begun * self.ramp_s / self.num_streams <= self._now_s():
            stream = idle.pop()
            selector.register(stream.socket, selectors.EVENT_READ, stream)
            self._send(stream)
            num_begun += 1

    def _serve(self, selector: selectors.BaseSelector, stream: TimedStream) -> None:
        descriptor = stream.socket.fileno()
        stream.read()
        if stream.is_closed:
            selector.unregister(descriptor)
            stream.reconnect()
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        if stream.record is None:
            self._send(stream)

    def _send(self, stream: TimedStream) -> None:
        if self._now_s() < self.end_s:
            stream.send(next(self.orders), self._num_sent)
            self._num_sent += 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.generator.timed_streams", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--ramp", type=float, required=True, metavar="S", help="within which the streams begin")
    parser.add_argument("--end", type=float, required=True, metavar="S", help="after the start")
    parser.add_argument("--prepare", type=int, required=True, metavar="N", help="requests made before the start")
    parser.add_argument("--records", type=Path, required=True, metavar="FILE", help="where the records go, a line each")
    options = parser.parse_args(arguments)
    every = orders(SessionPlan(read_workload(options.workload), options.streams), options.url)
    ready = [next(every) for _ in range(options.prepare)]
    run = TimedRun(
        url=options.url,
        orders=chain(ready, every),
        num_streams=options.streams,
        ramp_s=options.ramp,
        end_s=options.end,
    )
    gc.freeze()
    gc.disable()
    before_s = time.process_time()
    try:
        run.play()
    except OSError as error:
        print(f"{options.url} cannot be reached any more: {error}", file=sys.stderr)
        return 2
    told: dict[str, Any] = {"generator_cpu_share": (time.process_time() - before_s) / options.end}
    options.records.write_bytes(b"\n".join(map(msgspec.json.encode, run.records)))
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
