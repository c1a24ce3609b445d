"""One student's admission on the event loop: a request waits here for its turn, then goes into the engine.

`router/admission/admission.py` decides whose turn it is; this module waits, reads the clock, and reports the end.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engines.contract import Engine
from engines.remote.config import RemoteConfig
from engines.scheduling.prefix_cache import least_computed
from engines.sequence import GenerationRequest, SamplingParams
from models.errors import DeadlineExceeded, InvalidParameter, ServingError
from router.admission.admission import Admission
from router.admission.least_time import Need
from router.admission.pace import Pace
from router.admission.ticket import Bounds, Ticket, TicketStatus
from router.decision import Priority
from server.access.keys import priority_of
from server.settings.config import ServerConfig
from server.students.event_bridge import Bridge, EventStream, Used
from server.telemetry.request_record import Record
from server.threads import settle

DEADLINE_HEADER = "x-fenhe-deadline-ms"
RANKS = {Priority.HIGH: 1, Priority.NORMAL: 0, Priority.LOW: -1}
"""As `GenerationRequest.priority`."""


def bounds_of(config: ServerConfig, remote: RemoteConfig | None = None) -> Bounds:
    """Those of a student, perhaps a remote one, whose settings say how much its upstreams may have at once."""
    return Bounds(
        max_running=config.engine.max_running if remote is None else remote.max_running,
        max_running_tokens=config.admission.max_running_tokens if remote is None else remote.max_running_tokens,
        max_queued=config.engine.max_waiting,
        max_queued_tokens=config.admission.max_queued_tokens,
    )


def time_limit_s(config: ServerConfig, headers: Sequence[str]) -> float:
    """How long an answer may take: what the x-fenhe-deadline-ms headers say, else the default; never more than
    `limits.request_timeout_s`.

    Raises: InvalidParameter.
    """
    longest_s = config.limits.request_timeout_s
    if not headers:
        return min(longest_s, config.admission.default_deadline_s or longest_s)
    wrong = next((text for text in headers if not _is_deadline(text)), None)
    if wrong is not None:
        raise InvalidParameter(
            f"the header {DEADLINE_HEADER}: {wrong[:40]!r} is no whole number of milliseconds above 0",
            param=DEADLINE_HEADER,
        )
    return min(longest_s, *(int(text) / 1000 for text in headers))


def _is_deadline(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12 and int(text) > 0


def count_nothing(num_tokens: int) -> None:
    """For requests without an API key, whose tokens are not counted."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Terms:
    """Whose request it is, and its deadline: on the `time.monotonic` clock, `time_limit_s` after the request arrived.

    `charge` gets the most tokens it may use, every sequence's prompt and longest answer, before it queues, and may
    raise; `refund` gets back those it did not use.
    """

    deadline_s: float
    time_limit_s: float
    tenant: str | None = None
    priority: Priority = Priority.NORMAL
    charge: Callable[[int], None] = count_nothing
    refund: Callable[[int], None] = count_nothing

    def too_late(self) -> DeadlineExceeded:
        """What ends the request at its deadline."""
        return DeadlineExceeded(
            f"the answer was not finished within {self.time_limit_s:g} s: what the header {DEADLINE_HEADER} asked for, "
            "or this server's limit"
        )


def terms_of(record: Record, priority: Priority | None) -> Terms:
    """The terms of a request whose key and deadline are checked already. Raises: Forbidden for its priority."""
    terms = Terms(
        deadline_s=record.deadline_s,
        time_limit_s=record.time_limit_s,
        tenant=record.tenant,
        priority=priority_of(record.api_key, priority),
    )
    meter = record.meter
    if meter is None:
        return terms
    return replace(
        terms,
        charge=lambda num_tokens: meter.charge(num_tokens, time.monotonic()),
        refund=lambda num_tokens: meter.refund(num_tokens, time.monotonic()),
    )


class StudentAdmission:
    """Owned by the loop. `turns` decides which request is admitted, `pace` is how fast the engine works.
    `caches_prefixes` says whether the engine may have computed most of a prompt before."""

    def __init__(
        self, bridge: Bridge, engine: Engine, bounds: Bounds, pace: Pace, *, caches_prefixes: bool = True
    ) -> None:
        self._bridge = bridge
        self._engine = engine
        self._caches_prefixes = caches_prefixes
        self.turns = Admission(
            bounds,
            pace,
            count_tokens=lambda: _count_tokens(engine),
            is_ready=lambda: engine.status().is_ready,
            can_pause=engine.status().can_pause,
        )
        self.pace = pace

    async def open(self, requests: Sequence[GenerationRequest], terms: Terms) -> EventStream:
        """Wait for a turn and submit. An admitted request counts as running until its last sequence has ended in the
        engine. The time spent here is part of the engine's queue time.

        Raises: QueueFull, DeadlineUnreachable, DeadlineExceeded; what `terms.charge` and `Engine.submit` raise.
        """
        turn: asyncio.Future[ServingError | None] = asyncio.get_running_loop().create_future()
        # If nobody waits any more when this is decided, the waiter was cancelled and releases the ticket itself.
        needs = frozenset(need_of(request, caches_prefixes=self._caches_prefixes) for request in requests)
        ticket = _make_ticket(requests, terms, needs, lambda error: settle(turn, error))
        terms.charge(ticket.cost_tokens)
        queued_s = time.monotonic()
        try:
            self.turns.offer(ticket, queued_s)
            error = await turn
            if error is not None:
                raise error
            salt, rank = terms.tenant or "", RANKS[terms.priority]
            stream = self._bridge.open(
                [replace(request, cache_salt=salt, priority=rank, queued_s=queued_s) for request in requests]
            )
        except BaseException:
            self._end(ticket, terms, Used())
            raise
        stream.when_over(lambda used: self._end(ticket, terms, used))
        return stream

    def _end(self, ticket: Ticket, terms: Terms, used: Used) -> None:
        terms.refund(max(0, ticket.cost_tokens - used.num_tokens))
        if ticket.status in (TicketStatus.QUEUED, TicketStatus.RUNNING):
            num_extra = _tokens_in(self._engine, used.choosing_s)
            self.turns.release(ticket, time.monotonic(), used.num_tokens, num_extra)


def need_of(request: GenerationRequest, *, caches_prefixes: bool) -> Need:
    """The least that a sequence takes, known before it begins."""
    num_prompt_tokens = request.num_prompt_tokens
    return Need(
        path=request.path,
        head=request.head_on("cheap"),
        num_prompt_tokens=num_prompt_tokens,
        num_uncached_tokens=least_computed(num_prompt_tokens) if caches_prefixes else num_prompt_tokens,
        num_answer_tokens=_least_answer_tokens(request.sampling),
    )


def _least_answer_tokens(sampling: SamplingParams) -> int:
    may_end = not sampling.ignore_eos or sampling.stop or sampling.stop_token_ids or sampling.grammar is not None
    least = 1 if sampling.grammar is not None else max(1, sampling.min_tokens)
    return min(least, sampling.max_tokens) if may_end else sampling.max_tokens


def _make_ticket(
    requests: Sequence[GenerationRequest],
    terms: Terms,
    needs: frozenset[Need],
    decide: Callable[[ServingError | None], None],
) -> Ticket:
    return Ticket(
        tenant=terms.tenant,
        path=requests[0].path,
        needs=needs,
        priority=terms.priority,
        num_sequences=len(requests),
        num_prompt_tokens=sum(request.num_prompt_tokens for request in requests),
        num_answer_tokens=sum(request.sampling.max_tokens for request in requests),
        deadline_s=terms.deadline_s,
        decide=decide,
    )


def _tokens_in(engine: Engine, seconds: float) -> float:
    """How many tokens the engine computes in this time, on average since it began."""
    if seconds <= 0.0:
        return 0.0
    busy_s = engine.status().busy_s
    return seconds * _count_tokens(engine) / busy_s if busy_s > 0.0 else 0.0


def _count_tokens(engine: Engine) -> int:
    status = engine.status()
    return status.num_prompt_tokens + status.num_generation_tokens
