"""Where the events of an answer come from: a cached answer, a generation shared with others, or one of its own."""

import contextlib
import logging
from dataclasses import dataclass, replace

from engines.sequence import Finish, GenerationRequest
from models.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    EngineUnhealthy,
    QueueFull,
    ServingError,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamModelMissing,
)
from router.cache.key import Origin, cache_key
from router.cache.result_cache import CacheUse, Outcome
from router.cache.similar import Question, read_question
from router.cache.single_flight import Found
from router.decision import Reason, Target
from server.context import Context
from server.generation.limits import check_room
from server.generation.plan import Plan
from server.generation.routing import Order, Routed, plan_of, reroute
from server.generation.shared_generation import Share, stream_of
from server.generation.usage import compute_of
from server.quality.scorer import Asked
from server.students.admission_gate import Terms
from server.students.event_bridge import EventStream
from server.students.student import ServedStudent

logger = logging.getLogger(__name__)

GIVES_WAY = (
    EngineUnhealthy,
    QueueFull,
    DeadlineUnreachable,
    DeadlineExceeded,
    UpstreamFailed,
    UpstreamBusy,
    UpstreamModelMissing,
)
"""Refusals of a student in whose place another one may answer."""


class JoinedFailure(Exception):
    """`error` is why a request could not be answered from the generation it joined."""

    def __init__(self, error: ServingError) -> None:
        super().__init__(error)
        self.error = error


@dataclass(slots=True, kw_only=True, frozen=True)
class Supply:
    """`stream` has the events of `plan`; `outcome` is what the result cache did, `found` what it had for a hit. With
    `is_watched` online quality may score the answer when it has ended."""

    stream: EventStream
    plan: Plan
    outcome: Outcome
    found: Found | None = None
    is_watched: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class Supplier:
    """Finds what one request is answered with. Owned by the loop; `id` names the request in the log."""

    context: Context
    order: Order
    routed: Routed
    plan: Plan
    terms: Terms
    use: CacheUse
    id: str
    may_be_scored: bool = True

    async def supply(self, held: contextlib.ExitStack) -> Supply:
        """Find the answer's events; closing `held` releases them.

        Raises: JoinedFailure; ServingError for a request that cannot be admitted or planned.
        """
        if self.use.writes:
            return await self._share(held)
        supply = await self._generate(Outcome.BYPASS)
        held.callback(supply.stream.close)
        return supply

    async def _share(self, held: contextlib.ExitStack) -> Supply:
        """A cached answer, or a share in a generation. One request at a time queues to start the generation; if
        it fails or is cancelled first, the next one queues. The cache is asked first: a hit waits in no queue."""
        origin, requests = self._origin(), self.plan.job.requests
        question = await self._question(origin)
        envelope = self.order.envelope
        key = await self.context.long_work.run(envelope.num_bytes, lambda: cache_key(origin, requests), envelope.tenant)
        share = Share(self.context.cache, key, len(requests), self.use, self.terms, question)
        held.callback(share.close)
        found = await share.find()
        if found is not None:
            return self._hit(share, found)
        async with share.turn_to_lead():
            if share.target is not None:
                return await self._join(share, share.target)
            found = await share.find()  # again: the request before this one may have queued in vain, for long
            if found is not None:
                return self._hit(share, found)
            return await self._lead(share)

    def _hit(self, share: Share, found: Found) -> Supply:
        share.close()
        return Supply(stream=stream_of(found.entry), plan=self.plan, outcome=Outcome.HIT, found=found)

    async def _join(self, share: Share, target: Target) -> Supply:
        """Join a generation; if it fell back to another target, plan the answer for that one. Raises: JoinedFailure."""
        own = self.plan.target
        is_elsewhere = (target.student, target.path) != (own.student, own.path)
        try:
            plan = await self._plan_at(target) if is_elsewhere else self.plan
        except ServingError as error:
            raise JoinedFailure(error) from None
        return Supply(stream=share.join(), plan=plan, outcome=Outcome.JOIN)

    async def _lead(self, share: Share) -> Supply:
        supply = await self._generate(Outcome.MISS if self.use.reads else Outcome.BYPASS)
        return replace(supply, stream=share.lead(supply.stream, supply.plan.target))

    async def _generate(self, outcome: Outcome) -> Supply:
        """Start to generate: the only place where an engine gets work, once nothing else can answer."""
        check_room(self.context)
        supply = await self._submit(outcome)
        job = supply.plan.job
        supply.plan.student.metrics.observe_request(job.n, job.requests[0].sampling.max_tokens)
        return supply

    async def _submit(self, outcome: Outcome) -> Supply:
        """Wait for the chosen student's admission and submit there; if it refuses, at the first fallback that accepts.

        Raises: what the chosen student's admission raised, when no fallback could take its place.
        """
        try:
            return await self._open(self.plan, outcome)
        except GIVES_WAY as error:
            for target in self.routed.decision.fallbacks:
                supply = await self._fall_back(target, outcome)
                if supply is not None:
                    return supply
            raise error

    async def _fall_back(self, target: Target, outcome: Outcome) -> Supply | None:
        logger.warning("student gave way id=%s from=%s to=%s", self.id, self.plan.student.name, target.student)
        try:
            return await self._open(await self._plan_at(target), outcome)
        except ServingError as error:
            logger.warning("fallback could not take over id=%s student=%s error=%s", self.id, target.student, error)
            return None

    async def _open(self, plan: Plan, outcome: Outcome) -> Supply:
        stream = await plan.student.admission.open(plan.job.requests, self.terms)
        stream.when_finished(lambda finish: self._count(plan, finish))
        is_watched = self._watch(stream, plan)
        if plan.student.remote is not None:
            await _check_begun(stream)
        return Supply(stream=stream, plan=plan, outcome=outcome, is_watched=is_watched)

    def _watch(self, stream: EventStream, plan: Plan) -> bool:
        """Whether the answer is to be scored. Only answers that an engine generates come here, each once."""
        decision = self.routed.decision
        is_named = decision.reason is Reason.WISHED_PATH and self.order.preferences.task is None
        asked = Asked(
            request_id=self.id,
            student=plan.student,
            task=None if is_named and decision.confidence is None else decision.task,
            request=plan.job.requests[0],
            is_allowed=self.may_be_scored,
        )
        return self.context.scorer.watch(stream, asked)

    def _count(self, plan: Plan, finish: Finish) -> None:
        if finish.timings.admitted_s is None:  # it never began
            return
        compute = compute_of(plan, [finish])
        metrics, task = self.context.metrics.compute, self.routed.decision.task
        metrics.observe(plan.student.name, task, finish.path, spent=compute.spent, full=compute.full)

    async def _plan_at(self, target: Target) -> Plan:
        routed = await reroute(self.context, self.order, self.routed, target)
        return await plan_of(self.context, self.order, routed)

    def _origin(self) -> Origin:
        student, target = self.plan.student, self.plan.target
        return Origin(
            student=target.student,
            digest=student.digest,
            path=target.path,
            head=self.plan.job.requests[0].head_on(student.fixed.head),
            tenant=self.terms.tenant,
        )

    async def _question(self, origin: Origin) -> Question | None:
        """What the semantic cache compares; None where that is off, or there is not exactly one."""
        threshold = self.context.cache.threshold_of(self.routed.decision.task)
        conversations = [] if threshold is None else await self.order.conversations()
        if threshold is None or len(conversations) != 1:
            return None
        student, requests = self.plan.student, self.plan.job.requests
        return read_question(
            origin,
            requests,
            _prompt_text(student, requests[0]),
            conversations[0].last,
            threshold=threshold,
            max_context_tokens=student.max_context_tokens,
        )


async def _check_begun(stream: EventStream) -> None:
    """Wait for the first event of a remote student, whose upstream may still refuse. Raises: the error, if that is what
    the event is; then another student may take over."""
    try:
        first = await stream.first()
    except BaseException:
        stream.close()
        raise
    if first.finish is not None and first.finish.error is not None:
        stream.close()
        raise first.finish.error


def _prompt_text(student: ServedStudent, request: GenerationRequest) -> str:
    """What the model reads; for a remote student, the body that its upstream is sent."""
    if request.remote is not None:
        return request.remote.body.decode(errors="replace")
    return student.tokenizer.decode(request.prompt_token_ids, skip_special=False)
