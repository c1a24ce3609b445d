"""How an answer is sent: as one JSON body or as a stream. Nothing is sent before the first event."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from starlette.types import Send

from engines.sequence import Finish, TokenLogprob
from router.cache.result_cache import Outcome
from router.cache.single_flight import Found
from router.decision import RouteDecision, Target
from server.generation.keep_alive import keep_alive
from server.generation.loosened import HEADER as LOOSENED_HEADER
from server.generation.loosened import header_of, log_loosened
from server.generation.plan import FAILURES, Batch, BodyWriter, Part, Plan, check_finish, merge
from server.generation.supply import Supply
from server.generation.usage import token_share, total_usage
from server.long_work import LongWork
from server.telemetry.request_record import SPARED, Record
from server.wire import sse

ROUTE_HEADERS = ("x-fenhe-task", "x-fenhe-path", "x-fenhe-confidence", "x-fenhe-reason", "x-fenhe-student")
"""Headers of a generated answer: how it was routed. Confidence is absent when nothing was classified."""
COMPUTE_HEADER = "x-fenhe-compute"
"""What one answer token cost over what it costs on the full path with the exact head; 0.00 where nothing was generated
for this request."""
CACHE_HEADERS = ("x-fenhe-cache", "age", "x-fenhe-similarity")
"""What the result cache did; for a hit also the answer's age in seconds and, if it belongs to a question that is only
similar, how similar."""

ANSWER_HEADERS = (*ROUTE_HEADERS, COMPUTE_HEADER, *CACHE_HEADERS, LOOSENED_HEADER)
"""All of these."""

PIECE_BYTES = 256 * 1024
"""How much of a body is given to the connection at a time."""
LOGPROB_BYTES = 64

Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True, kw_only=True, frozen=True)
class Delivery:
    """One answer on its way to the client. `started_s` is when the work on it began."""

    supply: Supply
    decision: RouteDecision
    record: Record
    send: Send
    started_s: float
    long_work: LongWork

    async def run(self, first: Batch) -> None:
        """`first` is what was taken from the stream already. Raises: what ended the generation."""
        if self.supply.plan.loosened:
            log_loosened(self.supply.plan.loosened, self.record.id)
        if self.supply.plan.job.is_stream:
            await self._send_stream(first)
        else:
            await self._send_whole(first)

    async def _send_whole(self, first: Batch) -> None:
        job, stream = self.supply.plan.job, self.supply.stream
        parts = [Part(index=index) for index in range(len(job.requests))]
        _add(parts, first)
        while any(part.finish is None for part in parts):
            _add(parts, await stream.take())
        finishes = [part.finish for part in parts if part.finish is not None]
        usage = total_usage(self.supply.plan, finishes)
        writer = self.supply.plan.writer
        body = await self._write(sum(map(_num_bytes, parts)), lambda: writer.whole(parts, usage))
        self.record.finish(finishes, usage)
        elapsed_ms = (time.monotonic() - self.started_s) * 1000
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"openai-processing-ms", str(round(elapsed_ms)).encode()),
            *self._headers(finishes[0].path),
        ]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send_body(body, more=False)

    async def _send_stream(self, first: Batch) -> None:
        job, writer, stream = self.supply.plan.job, self.supply.plan.writer, self.supply.stream
        finishes: dict[int, Finish] = {}
        opening = writer.opening()
        body = opening + await self._encode(first, finishes)
        headers = [*sse.HEADERS, *self._headers(job.path)]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        self.record.is_event_stream, self.record.frame_error = True, writer.failed
        await self._send_body(body, more=True)
        async with keep_alive(self.send) as send:
            rest = replace(self, send=send)
            while len(finishes) < len(job.requests):
                batch, failed = _until_failure(await stream.take())
                body = await self._encode(batch, finishes)
                if body:
                    await rest._send_body(body, more=True)
                if failed is not None:
                    check_finish(failed)
        ordered = [finishes[index] for index in sorted(finishes)]
        usage = total_usage(self.supply.plan, ordered)
        self.record.finish(ordered, usage)
        tail = writer.usage(usage) if job.includes_usage else b""
        await self.send({"type": "http.response.body", "body": tail + job.done})

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        """In pieces: what a connection is given at once it copies at once."""
        last = max(0, len(body) - 1) // PIECE_BYTES * PIECE_BYTES
        for start in range(0, last, PIECE_BYTES):
            await self.send(
                {"type": "http.response.body", "body": body[start : start + PIECE_BYTES], "more_body": True}
            )
        await self.send({"type": "http.response.body", "body": body[last:], "more_body": more})

    async def _encode(self, batch: Batch, finishes: dict[int, Finish]) -> bytes:
        """The chunks of a batch: one step's, or all that came while the client was slow."""
        writer, tells_usage = self.supply.plan.writer, self.supply.plan.job.tells_usage
        num_bytes = sum(_num_logprob_bytes(event.logprobs) for _, event in batch)
        return await self._write(num_bytes, lambda: _encode(writer, batch, finishes, tells_usage=tells_usage))

    async def _write(self, num_bytes: int, work: Callable[[], bytes]) -> bytes:
        return await self.long_work.run(num_bytes, work, self.record.tenant)

    def _headers(self, path: str) -> Headers:
        supply = self.supply
        routed = route_headers(self.decision, supply.plan.target, path)
        share = 0.0 if supply.outcome in SPARED else token_share(supply.plan, path)
        compute = (COMPUTE_HEADER.encode(), f"{share:.2f}".encode())
        return [*routed, compute, *cache_headers(supply.outcome, supply.found), *_loosened_headers(supply.plan)]


def _num_bytes(part: Part) -> int:
    return sum(map(len, part.texts)) + _num_logprob_bytes(part.logprobs)


def _num_logprob_bytes(logprobs: Sequence[TokenLogprob]) -> int:
    """About what they take in a body. All of a request report as many alternatives as the last one."""
    return len(logprobs) * (1 + len(logprobs[-1].alternatives)) * LOGPROB_BYTES if logprobs else 0


def _add(parts: Sequence[Part], batch: Batch) -> None:
    for index, event in batch:
        parts[index].add(event)


def _until_failure(batch: Batch) -> tuple[Batch, Finish | None]:
    """What came before a sequence failed, which a stream still sends, and how it failed; None when none did."""
    for place, (index, event) in enumerate(batch):
        if event.finish is not None and event.finish.reason in FAILURES:
            return [*batch[:place], (index, replace(event, finish=None))], event.finish
    return batch, None


def _encode(writer: BodyWriter, batch: Batch, finishes: dict[int, Finish], *, tells_usage: bool) -> bytes:
    """The chunks of a batch; `finishes` gets the choices that end in it."""
    if len(batch) == 1 and not tells_usage:  # the case of almost every token
        index, event = batch[0]
        if event.finish is None and not event.logprobs:
            return writer.text(index, event.text) if event.text else b""
    chunks = []
    for part in merge(batch):
        if part.finish is not None:
            finishes[part.index] = part.finish
        if part.texts or part.logprobs or part.finish is not None or (tells_usage and part.num_tokens):
            chunks.append(writer.part(part))
    return b"".join(chunks)


def route_headers(decision: RouteDecision, target: Target, path: str) -> Headers:
    """How a request was routed; target and path are those that really ran."""
    fields = {"task": decision.task, "path": path, "reason": target.reason.value, "student": target.student}
    if decision.confidence is not None:
        fields["confidence"] = f"{decision.confidence:.3f}"
    return [(f"x-fenhe-{name}".encode(), value.encode("ascii", "replace")) for name, value in fields.items()]


def _loosened_headers(plan: Plan) -> Headers:
    return [(LOOSENED_HEADER.encode(), header_of(plan.loosened).encode())] if plan.loosened else []


def cache_headers(outcome: Outcome, found: Found | None) -> Headers:
    """Source: RFC 9111, section 5.1: the age of a cached answer in whole seconds."""
    headers = [(b"x-fenhe-cache", outcome.value.encode())]
    if found is not None and found.similarity is not None:
        headers.append((b"x-fenhe-similarity", f"{found.similarity:.3f}".encode()))
    if found is not None:
        headers.append((b"age", str(math.floor(found.entry.age_s)).encode()))
    return headers
