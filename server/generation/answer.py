"""Answering one generation request: one JSON body or a stream, and an abort when the client leaves.

What the bodies look like is up to a `BodyWriter` (`server/generation/plan.py`); here is only when to send.
"""

import contextlib
import logging
import time

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engines.sequence import Finish
from models.errors import DeadlineUnreachable, EngineUnhealthy, QueueFull, ServingError
from router.cache.key import Origin, cache_key
from router.cache.result_cache import CacheUse, Outcome
from router.cache.similar import Question, read_question
from router.cache.single_flight import Found
from router.decision import RouteDecision, Target
from server.context import Context
from server.generation.cache_control import cache_use
from server.generation.cancellation import Guard, guarded
from server.generation.limits import check_room
from server.generation.plan import Batch, Part, Plan, merge, total_usage
from server.generation.routing import Order, Routed, reroute, route
from server.generation.shared_generation import Share, cache_headers, stream_of
from server.students.admission_gate import Terms, terms_of
from server.students.event_bridge import EventStream
from server.telemetry.request_record import Record, record_of
from server.wire import sse

logger = logging.getLogger(__name__)

ROUTE_HEADERS = ("x-fenhe-task", "x-fenhe-path", "x-fenhe-confidence", "x-fenhe-reason", "x-fenhe-student")
"""Headers of a generated answer: how it was routed. Confidence is absent when nothing was classified."""
CACHE_HEADERS = ("x-fenhe-cache", "age", "x-fenhe-similarity")
"""What the result cache did; for a hit how old the answer is in seconds, and how near the question it was given to, if
that was not the same."""


async def answer(context: Context, order: Order) -> "Answer":
    """Route an order and plan it. Raises: what `route` and the order's `plan` raise."""
    routed = await route(context, order)
    context.metrics.routes.observe(routed.decision, routed.seconds)
    return Answer(context, order, routed, order.plan(routed))


class Answer(Response):
    """The response to a generation request. Nothing is sent before the first event, so that an early failure still has
    its own status.

    The events are those of a kept answer, of a generation that other requests share, or of one of its own.
    """

    def __init__(self, context: Context, order: Order, routed: Routed, plan: Plan) -> None:
        super().__init__()
        self._context = context
        self._order = order
        self._routed = routed
        self._decision = routed.decision
        self._plan = plan
        self._use(plan)
        self._outcome: Outcome | None = None
        self._is_counted = False
        self._found: Found | None = None
        self._record: Record
        self._terms: Terms
        self._started_s = time.monotonic()

    def _use(self, plan: Plan) -> None:
        self._target, self._student, self._job, self._writer = plan.target, plan.student, plan.job, plan.writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ServingError, ClientGone; the middleware makes bytes of them, also inside a stream."""
        use = self._cache_use(scope)
        record = self._record = record_of(scope)
        self._terms = terms_of(record, self._order.preferences.priority)
        with guarded(receive, self._terms) as guard:
            try:
                await self._serve(use, guard, send)
            except ServingError as error:
                is_others = self._outcome is Outcome.JOIN and not guard.has_failed
                if not is_others or record.status is not None:
                    raise
                logger.info("shared generation failed, trying once more id=%s code=%s", record.id, error.code)
                await self._serve(use, guard, send)

    async def _serve(self, use: CacheUse, guard: Guard, send: Send) -> None:
        self._use(self._plan)
        self._outcome = None
        with contextlib.ExitStack() as held:
            stream = await guard.race(self._obtain(use, held))
            guard.hold(stream)
            await self._tell(stream, send)

    def _cache_use(self, scope: Scope) -> CacheUse:
        return cache_use(
            self._job.requests,
            self._order.preferences.cache,
            Headers(scope=scope).getlist("cache-control"),
            is_enabled=self._context.cache.is_enabled,
        )

    async def _obtain(self, use: CacheUse, held: contextlib.ExitStack) -> EventStream:
        """Find what to answer with; `held` gets what to let go of at the end."""
        if use.writes:
            stream = await self._share(use, held)
        else:
            self._outcome = Outcome.BYPASS
            stream = await self._open()
            held.callback(stream.close)
        assert self._outcome is not None
        self._record.cache = self._outcome.value
        return stream

    async def _share(self, use: CacheUse, held: contextlib.ExitStack) -> EventStream:
        """A kept answer, or a share in a generation. One request at a time queues to begin it; should it fail or leave
        before there is a generation, the next in line does. Nobody stands in that line for what is kept."""
        origin, requests = self._origin(self._record.tenant), self._job.requests
        question = await self._question(origin)
        key = cache_key(origin, requests)
        share = Share(self._context.cache, key, len(requests), use, self._terms, question)
        held.callback(share.close)
        found = await share.find()
        if found is not None:
            return self._hit(share, found)
        async with share.turn_to_lead():
            if share.target is not None:
                self._outcome = Outcome.JOIN
                await self._follow(share.target)
                return share.join()
            found = await share.find()  # meanwhile another may have looked, or queued in vain
            if found is not None:
                return self._hit(share, found)
            self._outcome = Outcome.MISS if use.reads else Outcome.BYPASS
            return share.lead(await self._open(), self._target)

    def _hit(self, share: Share, found: Found) -> EventStream:
        self._outcome, self._found = Outcome.HIT, found
        share.close()
        return stream_of(found.entry)

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
            self._use(self._order.plan(await reroute(self._context, self._order, self._routed, target)))

    async def _tell(self, stream: EventStream, send: Send) -> None:
        self._record.begin(self._decision, self._target)
        first = await stream.take()
        self._count()
        if self._job.is_stream:
            await self._stream(first, stream, send)
        else:
            await self._whole(first, stream, send)

    def _count(self) -> None:
        """Count the request, once: a follower whose generation fails and that tries again has joined."""
        assert self._outcome is not None
        if not self._is_counted:
            self._is_counted = True
            self._context.cache.count(self._outcome, self._found)

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
        logger.warning("student gave way id=%s from=%s to=%s", self._record.id, self._student.name, target.student)
        try:
            plan = self._order.plan(await reroute(self._context, self._order, self._routed, target))
            stream = await plan.student.gate.open(plan.job.requests, self._terms)
        except ServingError as error:
            logger.warning(
                "fallback could not take over id=%s student=%s error=%s", self._record.id, target.student, error
            )
            return None
        self._use(plan)
        return stream

    async def _whole(self, first: Batch, stream: EventStream, send: Send) -> None:
        parts = [Part(index=index) for index in range(len(self._job.requests))]
        _add(parts, first)
        while any(part.finish is None for part in parts):
            _add(parts, await stream.take())
        finishes = [part.finish for part in parts if part.finish is not None]
        usage = total_usage(finishes, self._job.n)
        body = self._writer.whole(parts, usage)
        self._record.finish(finishes, usage)
        elapsed_ms = (time.monotonic() - self._started_s) * 1000
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"openai-processing-ms", str(round(elapsed_ms)).encode()),
            *self._answer_headers(finishes[0].path),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, first: Batch, stream: EventStream, send: Send) -> None:
        record = self._record
        finishes: dict[int, Finish] = {}
        body = self._writer.opening() + self._encode(first, finishes)
        headers = [*sse.HEADERS, *self._answer_headers(self._job.path)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        record.is_event_stream, record.frame_error = True, self._writer.failed
        await send({"type": "http.response.body", "body": body, "more_body": True})
        while len(finishes) < len(self._job.requests):
            body = self._encode(await stream.take(), finishes)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        ordered = [finishes[index] for index in sorted(finishes)]
        usage = total_usage(ordered, self._job.n)
        record.finish(ordered, usage)
        tail = self._writer.usage(usage) if self._job.includes_usage else b""
        await send({"type": "http.response.body", "body": tail + self._job.done})

    def _encode(self, batch: Batch, finishes: dict[int, Finish]) -> bytes:
        if len(batch) == 1:  # the way of almost every token
            index, event = batch[0]
            if event.finish is None and not event.logprobs:
                return self._writer.text(index, event.text) if event.text else b""
        chunks = []
        for part in merge(batch):
            if part.finish is not None:
                finishes[part.index] = part.finish
            if part.texts or part.logprobs or part.finish is not None:
                chunks.append(self._writer.part(part))
        return b"".join(chunks)

    def _answer_headers(self, path: str) -> list[tuple[bytes, bytes]]:
        assert self._outcome is not None
        cached = cache_headers(self._outcome, self._found)
        return [*route_headers(self._decision, self._target, path), *cached]


def _add(parts: list[Part], batch: Batch) -> None:
    for index, event in batch:
        parts[index].add(event)


def route_headers(decision: RouteDecision, target: Target, path: str) -> list[tuple[bytes, bytes]]:
    """How a request was routed; target and path are those that really ran."""
    told = {"task": decision.task, "path": path, "reason": target.reason.value, "student": target.student}
    if decision.confidence is not None:
        told["confidence"] = f"{decision.confidence:.3f}"
    return [(f"x-fenhe-{name}".encode(), value.encode("ascii", "replace")) for name, value in told.items()]
