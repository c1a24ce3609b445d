"""The response to a generation request. `supply.py` finds what answers it, `delivery.py` sends that."""

import contextlib
import logging
import time

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from models.errors import ContextTooLong, ServingError
from router.cache.result_cache import CacheUse, Outcome
from server.context import Context
from server.generation.cache_control import cache_use
from server.generation.cancellation import Cancellation, cancelled_by
from server.generation.delivery import Delivery
from server.generation.plan import Plan
from server.generation.routing import Order, Routed, plan_of, route
from server.generation.supply import JoinedFailure, Supplier, Supply
from server.students.admission_gate import terms_of
from server.telemetry.request_record import Record, record_of

logger = logging.getLogger(__name__)


async def answer(context: Context, order: Order, request: Request) -> "Answer":
    """The response that generates what an order asks for. Nothing goes on once the client disconnects or the deadline
    passes. Raises: ClientGone, DeadlineExceeded; what `route` and the order's `plan` raise."""
    record = record_of(request.scope)
    terms = terms_of(record, order.preferences.priority)
    with cancelled_by(request.receive, terms) as cancellation:
        routed = await cancellation.run(route(context, order))
        context.metrics.routes.observe(routed.decision, routed.seconds)
        plan = await cancellation.run(_plan_or_charge(context, order, routed, record))
    return Answer(context, order, routed, plan)


async def _plan_or_charge(context: Context, order: Order, routed: Routed, record: Record) -> Plan:
    """Raises: ContextTooLong for a prompt that turned out not to fit: it costs its key what was read of it; other kinds
    of BadRequest."""
    try:
        return await plan_of(context, order, routed)
    except ContextTooLong:
        if record.meter is not None:
            record.meter.settle(0, sum(prompt.num_tokens for prompt in routed.prompts), time.monotonic())
        raise


class Answer(Response):
    """Nothing is sent before the first event, so that an early failure still has its own status. The work ends when the
    client disconnects or the deadline passes. A request that joined another's generation tries once more if that one
    fails."""

    def __init__(self, context: Context, order: Order, routed: Routed, plan: Plan) -> None:
        super().__init__()
        self._context = context
        self._order = order
        self._routed = routed
        self._plan = plan
        self._started_s = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ServingError, ClientGone; the middleware turns them into bytes, also inside a stream."""
        record = record_of(scope)
        supplier = self._supplier(scope, record)
        with cancelled_by(receive, supplier.terms) as cancellation:
            failure = await self._serve(supplier, record, cancellation, send)
            if failure is not None and not cancellation.is_cancelled and record.status is None:
                logger.info("shared generation failed, trying once more id=%s code=%s", record.id, failure.code)
                failure = await self._serve(supplier, record, cancellation, send)
            if failure is not None:
                raise failure

    def _supplier(self, scope: Scope, record: Record) -> Supplier:
        """Raises: Forbidden for its priority."""
        return Supplier(
            context=self._context,
            order=self._order,
            routed=self._routed,
            plan=self._plan,
            terms=terms_of(record, self._order.preferences.priority),
            use=self._cache_use(scope),
            id=record.id,
            may_be_scored=self._may_be_scored(record),
        )

    def _may_be_scored(self, record: Record) -> bool:
        """Both the key and the request must allow it."""
        is_allowed = record.api_key is None or record.api_key.online_quality
        return is_allowed and self._order.preferences.online_quality is not False

    def _cache_use(self, scope: Scope) -> CacheUse:
        return cache_use(
            self._plan.job.requests,
            self._order.preferences.cache,
            Headers(scope=scope).getlist("cache-control"),
            is_enabled=self._context.cache.is_enabled,
        )

    async def _serve(
        self, supplier: Supplier, record: Record, cancellation: Cancellation, send: Send
    ) -> ServingError | None:
        """Return the error of a joined generation that failed, else None. Raises: whatever else ends the answer."""
        with contextlib.ExitStack() as held:
            try:
                supply = await cancellation.run(supplier.supply(held))
            except JoinedFailure as failure:
                return failure.error
            cancellation.watch(supply.stream)
            try:
                await self._deliver(supply, record, send)
            except ServingError as error:
                if supply.outcome is not Outcome.JOIN:
                    raise
                return error
        return None

    async def _deliver(self, supply: Supply, record: Record, send: Send) -> None:
        is_counted = record.cache is not None  # true at the second try: a request counts once, by its first
        record.cache = supply.outcome.value
        record.is_watched = record.is_watched or supply.is_watched
        record.begin(self._routed.decision, supply.plan.target)
        first = await supply.stream.take()
        if not is_counted:
            self._context.cache.count(supply.outcome, supply.found)
        delivery = Delivery(
            supply=supply,
            decision=self._routed.decision,
            record=record,
            send=send,
            started_s=self._started_s,
            long_work=self._context.long_work,
        )
        await delivery.run(first)
