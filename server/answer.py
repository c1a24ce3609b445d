"""Answering one generation request: one JSON body or a stream, and an abort when the client leaves.

What the bodies look like is a `Shape` (`server/chat.py`, `server/completions.py`); here is only when to send.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engines.sequence import Finish, FinishReason, GenerationRequest, SequenceEvent, TokenLogprob, Usage
from models.errors import DeadlineUnreachable, EngineUnhealthy, QueueFull, ServingError, StepFailed
from router.cache import CacheUse, Outcome
from router.cache_key import Origin, cache_key
from router.decision import RouteDecision, Target
from router.similar import Question, read_question
from server import sse
from server.bridge import ClientGone, EventStream
from server.cache_control import cache_use
from server.caching import Seat, cache_headers, stream_of
from server.context import Context
from server.gate import Terms, terms_of
from server.limits import check_room
from server.prompts import Prompt
from server.record import Record, record_of
from server.routing import Routable, Routed, route
from server.schema import CompletionTokensDetails, PromptTokensDetails, UsageReply
from server.student import ServedStudent

logger = logging.getLogger(__name__)

Batch = list[tuple[int, SequenceEvent]]
T = TypeVar("T")

ROUTE_HEADERS = ("x-fenhe-task", "x-fenhe-path", "x-fenhe-confidence", "x-fenhe-reason", "x-fenhe-student")
"""Headers of a generated answer: how it was routed. Confidence is absent when nothing was classified."""
CACHE_HEADERS = ("x-fenhe-cache", "age", "x-fenhe-similarity")
"""What the result cache did; for a hit how old the answer is in seconds, and how near the question it was given to, if
that was not the same."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Job:
    """One HTTP request's work: a sequence per choice, `n` choices per prompt, in order of their index.

    `model` is the id that the answer carries, `done` what ends a stream.
    """

    id: str
    created: int
    model: str
    path: str
    fingerprint: str
    requests: tuple[GenerationRequest, ...]
    n: int = 1
    is_stream: bool = False
    includes_usage: bool = False
    done: bytes = sse.DONE


@dataclass(slots=True, kw_only=True)
class Part:
    """What is known of one choice: since the last chunk, or of the whole answer."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 else "".join(self.texts)

    def add(self, event: SequenceEvent) -> None:
        """Append an event. Raises: what ended the sequence, unless it ended well."""
        if event.text:
            self.texts.append(event.text)
        self.logprobs.extend(event.logprobs)
        if event.finish is not None:
            check_finish(event.finish)
            self.finish = event.finish


class Shape(Protocol):
    """The bodies of one API. Every `bytes` but `whole` is framed for the stream."""

    def opening(self) -> bytes: ...

    def text(self, index: int, text: str) -> bytes: ...

    def part(self, part: Part) -> bytes: ...

    def usage(self, usage: UsageReply) -> bytes: ...

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes: ...


@dataclass(slots=True, kw_only=True, frozen=True)
class Plan:
    """A job for one student, and how its answer looks."""

    target: Target
    student: ServedStudent
    job: Job
    shape: Shape


class Order(Routable, Protocol):
    """A generation request, which any student can be planned for."""

    def plan(self, target: Target, student: ServedStudent, prompts: list[Prompt]) -> Plan:
        """Raises: ContextTooLong, InvalidParameter."""
        ...


async def answer(context: Context, order: Order) -> "Answer":
    """Route an order and plan it. Raises: what `route` and the order's `plan` raise."""
    routed = await route(context, order)
    decision = routed.decision
    context.metrics.routes.observe(decision, routed.seconds)
    return Answer(context, order, routed, order.plan(decision.target, routed.student, routed.prompts))


def check_finish(finish: Finish) -> None:
    """Raises: the error a sequence ended with; EngineUnhealthy when the engine gave it up by itself."""
    if finish.reason is FinishReason.ERROR:
        raise finish.error or StepFailed("the engine failed on this sequence")
    if finish.reason is FinishReason.ABORT:
        raise EngineUnhealthy("the answer was broken off because the student is being stopped", retry_after_s=5.0)


def merge(batch: Batch) -> list[Part]:
    """One part per choice: what several steps brought while the client was slow goes out together."""
    parts: dict[int, Part] = {}
    for index, event in batch:
        part = parts.get(index)
        if part is None:
            part = parts[index] = Part(index=index)
        part.add(event)
    return list(parts.values())


def total_usage(finishes: list[Finish], n: int) -> UsageReply:
    """Sum over choices; a prompt counts once, however many choices it has."""
    usages: list[Usage] = [finish.usage for finish in finishes]
    prompt_tokens = sum(usage.num_prompt_tokens for usage in usages[::n])
    completion_tokens = sum(usage.num_completion_tokens for usage in usages)
    return UsageReply(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(usage.num_cached_tokens for usage in usages[::n])),
        completion_tokens_details=CompletionTokensDetails(),
    )


class Answer(Response):
    """The response to a generation request. Nothing is sent before the first event, so that an early failure still has
    its own status.

    The events are those of a kept answer, of a generation that other requests share, or of one of its own.
    """

    def __init__(self, context: Context, order: Order, routed: Routed, plan: Plan) -> None:
        super().__init__()
        self._context = context
        self._order = order
        self._decision = routed.decision
        self._plan = plan
        self._use(plan)
        self._outcome: Outcome | None = None
        self._age_s: float | None = None
        self._similarity: float | None = None
        self._terms: Terms
        self._started_s = time.monotonic()

    def _use(self, plan: Plan) -> None:
        self._target, self._student, self._job, self._shape = plan.target, plan.student, plan.job, plan.shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ServingError, ClientGone; the middleware makes bytes of them, also inside a stream."""
        use = self._cache_use(scope)
        self._terms = terms_of(record_of(scope), self._order.wishes.priority)
        with self._guard(receive) as guard:
            try:
                await self._serve(use, guard, scope, send)
            except ServingError as error:
                is_others = self._outcome is Outcome.JOIN and not guard.has_failed
                if not is_others or record_of(scope).status is not None:
                    raise
                logger.info("shared generation failed, trying once more code=%s", error.code)
                await self._serve(use, guard, scope, send)

    async def _serve(self, use: CacheUse, guard: "Guard", scope: Scope, send: Send) -> None:
        self._use(self._plan)
        self._outcome = None
        with contextlib.ExitStack() as held:
            stream = await guard.race(self._obtain(use, record_of(scope), held))
            guard.hold(stream)
            await self._tell(stream, scope, send)

    def _cache_use(self, scope: Scope) -> CacheUse:
        return cache_use(
            self._job.requests,
            self._order.wishes.cache,
            Headers(scope=scope).getlist("cache-control"),
            is_enabled=self._context.cache.is_enabled,
        )

    async def _obtain(self, use: CacheUse, record: Record, held: contextlib.ExitStack) -> EventStream:
        """Find what to answer with; `held` gets what to let go of at the end."""
        if use.writes:
            stream = await self._share(use, record, held)
        else:
            self._outcome = Outcome.BYPASS
            stream = await self._open()
            held.callback(stream.close)
        assert self._outcome is not None
        record.cache = self._outcome.value
        self._context.cache.outcomes[self._outcome] += 1
        return stream

    async def _share(self, use: CacheUse, record: Record, held: contextlib.ExitStack) -> EventStream:
        """A kept answer, or a share in a generation. One request at a time finds out which; should it fail or leave
        before there is a generation, the next in line does."""
        origin = self._origin(record.tenant)
        question = await self._question(origin)
        seat = Seat(self._context.cache, cache_key(origin, self._job.requests), len(self._job.requests), use, question)
        held.callback(seat.close)
        async with seat.boarding:
            if seat.target is not None:
                self._outcome = Outcome.JOIN
                await self._follow(seat.target)
                return seat.join()
            entry = await seat.find()
            if entry is not None:
                self._outcome, self._age_s, self._similarity = Outcome.HIT, entry.age_s, seat.similarity
                self._context.cache.num_similar += seat.similarity is not None
                seat.close()
                return stream_of(entry)
            self._outcome = Outcome.MISS if use.reads else Outcome.BYPASS
            return seat.lead(await self._open(), self._target)

    def _origin(self, tenant: str | None) -> Origin:
        target, student = self._target, self._student
        return Origin(student=target.student, digest=student.digest, path=target.path, tenant=tenant)

    async def _question(self, origin: Origin) -> Question | None:
        """What the semantic cache compares; None where that is off or cannot be told."""
        threshold = self._context.cache.threshold_of(self._decision.task)
        conversations = [] if threshold is None else await self._order.conversations()
        if threshold is None or len(conversations) != 1:
            return None
        requests = self._job.requests
        prompt = self._student.tokenizer.decode(requests[0].prompt_token_ids, skip_special=False)
        return read_question(
            origin,
            requests,
            prompt,
            conversations[0].last,
            threshold=threshold,
            max_context_tokens=self._student.max_context_tokens,
        )

    async def _follow(self, target: Target) -> None:
        """Answer as the student and the path that the shared generation fell back to."""
        if (target.student, target.path) != (self._target.student, self._target.path):
            student = self._context.pool.find(target.student)
            self._use(self._order.plan(target, student, await self._order.encode(student)))

    async def _tell(self, stream: EventStream, scope: Scope, send: Send) -> None:
        record_of(scope).begin(self._decision, self._target)
        if self._job.is_stream:
            await self._stream(stream, scope, send)
        else:
            await self._whole(stream, scope, send)

    async def _open(self) -> EventStream:
        """Begin to generate: the one place where an engine gets work, after everything that could spare it some."""
        check_room(self._context)
        stream = await self._submit()
        self._student.metrics.observe_request(self._job.n, self._job.requests[0].sampling.max_tokens)
        return stream

    async def _submit(self) -> EventStream:
        """Wait for a turn at the chosen student's gate and submit, or at that of the first fallback that takes it.

        Raises: what the chosen student's gate raised, when no fallback could take its place.
        """
        try:
            return await self._student.gate.open(self._job.requests, self._terms)
        except (EngineUnhealthy, QueueFull, DeadlineUnreachable) as error:
            for target in self._decision.fallbacks:
                stream = await self._fall_back(target)
                if stream is not None:
                    return stream
            raise error

    async def _fall_back(self, target: Target) -> EventStream | None:
        logger.warning("student gave way from=%s to=%s", self._student.name, target.student)
        try:
            student = self._context.pool.find(target.student)
            plan = self._order.plan(target, student, await self._order.encode(student))
            stream = await student.gate.open(plan.job.requests, self._terms)
        except ServingError as error:
            logger.warning("fallback could not take over student=%s error=%s", target.student, error)
            return None
        self._use(plan)
        return stream

    @contextlib.contextmanager
    def _guard(self, receive: Receive) -> Iterator["Guard"]:
        """End the work when the client leaves or the time is up."""
        guard = Guard()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._terms.deadline_s - time.monotonic(), guard.fail, self._terms.too_late())
        watcher = loop.create_task(_watch(receive, guard))
        try:
            yield guard
        finally:
            timer.cancel()
            watcher.cancel()

    async def _whole(self, stream: EventStream, scope: Scope, send: Send) -> None:
        parts = [Part(index=index) for index in range(len(self._job.requests))]
        while any(part.finish is None for part in parts):
            for index, event in await stream.take():
                parts[index].add(event)
        finishes = [part.finish for part in parts if part.finish is not None]
        usage = total_usage(finishes, self._job.n)
        body = self._shape.whole(parts, usage)
        record_of(scope).finish(finishes, usage)
        elapsed_ms = (time.monotonic() - self._started_s) * 1000
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"openai-processing-ms", str(round(elapsed_ms)).encode()),
            *self._answer_headers(finishes[0].path),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, stream: EventStream, scope: Scope, send: Send) -> None:
        record = record_of(scope)
        batch = await stream.take()
        finishes: dict[int, Finish] = {}
        body = self._shape.opening() + self._encode(batch, finishes)
        headers = [*sse.HEADERS, *self._answer_headers(self._job.path)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        record.is_event_stream = True
        await send({"type": "http.response.body", "body": body, "more_body": True})
        while len(finishes) < len(self._job.requests):
            body = self._encode(await stream.take(), finishes)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        ordered = [finishes[index] for index in sorted(finishes)]
        usage = total_usage(ordered, self._job.n)
        record.finish(ordered, usage)
        tail = self._shape.usage(usage) if self._job.includes_usage else b""
        await send({"type": "http.response.body", "body": tail + self._job.done})

    def _encode(self, batch: Batch, finishes: dict[int, Finish]) -> bytes:
        if len(batch) == 1:  # the way of almost every token
            index, event = batch[0]
            if event.finish is None and not event.logprobs:
                return self._shape.text(index, event.text) if event.text else b""
        chunks = []
        for part in merge(batch):
            if part.finish is not None:
                finishes[part.index] = part.finish
            if part.texts or part.logprobs or part.finish is not None:
                chunks.append(self._shape.part(part))
        return b"".join(chunks)

    def _answer_headers(self, path: str) -> list[tuple[bytes, bytes]]:
        assert self._outcome is not None
        cached = cache_headers(self._outcome, self._age_s, self._similarity)
        return [*route_headers(self._decision, self._target, path), *cached]


def route_headers(decision: RouteDecision, target: Target, path: str) -> list[tuple[bytes, bytes]]:
    """How a request was routed; target and path are those that really ran."""
    told = {"task": decision.task, "path": path, "reason": target.reason.value, "student": target.student}
    if decision.confidence is not None:
        told["confidence"] = f"{decision.confidence:.3f}"
    return [(f"x-fenhe-{name}".encode(), value.encode("ascii", "replace")) for name, value in told.items()]


class Guard:
    """Ends an answer early: its stream, or what is done before there is one. Owned by the loop."""

    def __init__(self) -> None:
        self._failure: Exception | None = None
        self._stream: EventStream | None = None
        self._work: asyncio.Task[Any] | None = None

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        if self._work is not None:
            self._work.cancel()
        if self._stream is not None:
            self._stream.fail(self._failure)

    def hold(self, stream: EventStream) -> None:
        self._stream = stream
        if self._failure is not None:
            stream.fail(self._failure)

    async def race(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what may take a while. Raises: what the guard fails with meanwhile."""
        if self._failure is not None:
            work.close()
            raise self._failure
        task = asyncio.get_running_loop().create_task(work)
        self._work = task
        try:
            return await task
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            raise self._failure from None
        finally:
            self._work = None


async def _watch(receive: Receive, guard: Guard) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    guard.fail(ClientGone())
