"""Admission to one student, counted in tokens: which requests start, wait or are refused.

A request is charged its prompt and the longest answer it allows. That bounds what runs and what queues. How long the
queue will take is estimated from the lengths of recent answers; what can never be in time is judged by the least that
a request takes. Pure: no clock, thread or loop of its own, one owner.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from models.bounds import Positive, Seconds, out_of_bounds
from models.errors import DeadlineExceeded, DeadlineUnreachable, Problem, QueueFull, ServingError
from router.admission.fair_queue import FairQueue
from router.admission.pace import Pace
from router.admission.tenant_shares import Shares, TenantShares
from router.admission.ticket import Bounds, Load, Ticket, TicketStatus
from router.decision import Priority

RETRY_AFTER_S = 1.0
"""What `Retry-After` says while nothing has been measured."""
SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.1, 60.0
AHEAD_SHARE = 4
"""One sequence per this many running ones may wait in the engine itself, so that no slot stays empty for a step."""

_CLASSES = tuple(Priority)


@dataclass(slots=True, kw_only=True, frozen=True)
class AdmissionConfig:
    """Bounds per student, in tokens; `engine.max_running` and `max_waiting` bound the sequences."""

    max_running_tokens: Annotated[
        Positive,
        Meta(description="tokens of prompt and longest answer that may run"),
    ] = 262_144
    max_queued_tokens: Annotated[Positive, Meta(description="tokens that may wait behind them")] = 2_097_152
    default_deadline_s: Annotated[
        Seconds | None,
        Meta(
            description="seconds that a request without a deadline may take",
            extra={"unset": "that of --request-timeout-s"},
        ),
    ] = None

    def problems(self) -> list[Problem]:
        """Everything wrong with the values; empty when they are sound."""
        return out_of_bounds(self)


class Admission:
    """`bounds` may be replaced at any time. `count_tokens` is how many tokens the engine has computed since it began.

    While `is_ready` is False, the engine is loading and more may start: sequences whose modules are there run, and the
    others wait in the engine. Where the engine `can_pause` sequences, a tenant with less than its share starts although
    others have everything: the engine makes room for it.
    """

    def __init__(
        self,
        bounds: Bounds,
        pace: Pace,
        *,
        count_tokens: Callable[[], int],
        is_ready: Callable[[], bool],
        can_pause: bool = False,
    ) -> None:
        self.bounds = bounds
        self.running, self.queued = Load(), Load()
        self.refusals: Counter[str] = Counter()
        self._pace = pace
        self._count_tokens = count_tokens
        self._is_ready = is_ready
        self._shares = TenantShares() if can_pause else None
        self._is_loaded = False
        self._queues: dict[Priority, FairQueue[Ticket]] = {priority: FairQueue() for priority in _CLASSES}
        self._orders = itertools.count()
        self._measured: tuple[float, int] | None = None

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return sum(map(len, self._queues.values()))

    def num_waiting_in(self, priority: Priority) -> int:
        return len(self._queues[priority])

    def offer(self, ticket: Ticket, now_s: float) -> None:
        """Start a request or queue it. Its `decide` is called when it starts or is refused, now or later.

        Raises: QueueFull, DeadlineUnreachable (try again later); DeadlineExceeded (too little time, even alone).
        """
        self._measure(now_s)
        ticket.order = next(self._orders)
        try:
            self._check_deadline(ticket, now_s)
            if not self._is_next(ticket):
                self._make_room(ticket, now_s)
        except ServingError as error:
            self._close(ticket, error)
            raise
        self._queues[ticket.priority].push(ticket)
        self.queued.add(ticket)
        ticket.status = TicketStatus.QUEUED
        self._admit_waiting(now_s)

    def release(self, ticket: Ticket, now_s: float, num_used_tokens: int = 0, num_extra_tokens: float = 0.0) -> None:
        """The request has ended, whether it ran or not; its tenant gets back the tokens it did not use, and pays for
        `num_extra_tokens`, which stand for what the engine did beyond computing tokens."""
        self._measure(now_s)
        if ticket.status is TicketStatus.RUNNING:
            self.running.take(ticket)
            if self._shares is not None:
                self._shares.take(ticket)
            self._pace.count_running(self.running.num_sequences, now_s)
            num_unused = max(0, ticket.cost_tokens - num_used_tokens)
            self._queues[ticket.priority].settle(ticket.tenant, num_extra_tokens - num_unused)
        elif ticket.status is TicketStatus.QUEUED:
            self._unqueue(ticket)
        ticket.status = TicketStatus.OVER
        self._admit_waiting(now_s)
        if not self.running.num_sequences:  # then nothing is queued either
            for queue in self._queues.values():
                queue.forget()

    def _admit_waiting(self, now_s: float) -> None:
        """Start requests in turn, as long as there is room; refuse those that can no longer meet their deadline."""
        while (ticket := self._next_ticket(now_s)) is not None:
            if self._is_late(ticket, now_s):
                self._unqueue(ticket)
                self._refuse(ticket, _too_late(ticket, now_s, self._least_s(ticket, now_s)))
            else:
                self._start(ticket, now_s)
        if not self.queued.num_sequences:
            self._measured = None
        elif self._measured is None:
            self._measured = (now_s, self._count_tokens())

    def _start(self, ticket: Ticket, now_s: float) -> None:
        self._queues[ticket.priority].take(ticket)
        self.queued.take(ticket)
        self.running.add(ticket)
        if self._shares is not None:
            self._shares.add(ticket)
        self._pace.count_running(self.running.num_sequences, now_s)
        ticket.status = TicketStatus.RUNNING
        ticket.decide(None)

    def _next_ticket(self, now_s: float) -> Ticket | None:
        """The one whose turn it is, if it has room or comes too late; else the first that its tenant's share has room
        for."""
        queue = self._next_queue()
        if queue is None:
            return None
        first, *others = queue.heads()
        if self._is_late(first, now_s) or self._fits(first):
            return first
        shares = self._count_shares(first)
        if self._may_enter_full(first, shares):
            return first
        return next((ticket for ticket in others if self._has_share(ticket, shares)), None)

    def _is_late(self, ticket: Ticket, now_s: float) -> bool:
        return now_s + self._least_s(ticket, now_s) > ticket.deadline_s

    def _next_queue(self) -> FairQueue[Ticket] | None:
        return next((queue for queue in self._queues.values() if len(queue)), None)

    def _has_room(self, ticket: Ticket) -> bool:
        """Whether it fits beside what runs, or in its tenant's share."""
        return self._fits(ticket) or self._may_enter_full(ticket, self._count_shares(ticket))

    def _fits(self, ticket: Ticket) -> bool:
        """Whether it fits beside what runs. When nothing runs, everything does."""
        if not self.running.num_sequences:
            return True
        bounds = self.bounds
        num_sequences = self.running.num_sequences + ticket.num_sequences
        num_tokens = self.running.num_tokens + ticket.cost_tokens
        num_ahead = min(bounds.max_running // AHEAD_SHARE, bounds.max_queued)
        return num_sequences <= bounds.max_running + num_ahead and num_tokens <= bounds.max_running_tokens

    def _may_enter_full(self, ticket: Ticket, shares: Shares | None) -> bool:
        self._is_loaded = self._is_loaded or self._is_ready()
        return self._has_share(ticket, shares) if self._is_loaded else self._may_wait_in_engine(ticket)

    def _has_share(self, ticket: Ticket, shares: Shares | None) -> bool:
        """Whether the engine would pause others for it."""
        return shares is not None and self._may_wait_in_engine(ticket) and shares.have_room(ticket)

    def _count_shares(self, ticket: Ticket) -> Shares | None:
        """The shares of all tenants, that of the ticket among them; None where the engine cannot pause."""
        if self._shares is None:
            return None
        waiting = {ticket.tenant}.union(*(queue.tenants for queue in self._queues.values()))
        return self._shares.count(waiting, self.bounds)

    def _may_wait_in_engine(self, ticket: Ticket) -> bool:
        bounds = self.bounds
        return (
            self.running.num_sequences + ticket.num_sequences <= bounds.max_running + bounds.max_queued
            and self.running.num_tokens + ticket.cost_tokens <= bounds.max_running_tokens + bounds.max_queued_tokens
        )

    def _is_next(self, ticket: Ticket) -> bool:
        """Whether a new request may start at once: it has room, and none of a higher priority waits, nor one of its own
        that would start before it."""
        above = _CLASSES[: _CLASSES.index(ticket.priority)]
        if any(len(self._queues[priority]) for priority in above):
            return False
        queue = self._queues[ticket.priority]
        if not len(queue):
            return self._has_room(ticket)
        return ticket.tenant not in queue.tenants and self._has_share(ticket, self._count_shares(ticket))

    def _make_room(self, ticket: Ticket, now_s: float) -> None:
        """Make room in the queue, if need be by refusing requests in it.

        Raises: QueueFull when too few of them are less entitled.
        """
        excess = self._excess(ticket)
        victims: list[Ticket] = []
        candidates = self._less_entitled(ticket)
        while excess.num_sequences > 0 or excess.num_tokens > 0:
            victim = next(candidates, None)
            if victim is None:
                raise self._queue_full(ticket, now_s)
            victims.append(victim)
            excess.take(victim)
            if excess.num_sequences <= 0 and self.queued.num_sequences == sum(one.num_sequences for one in victims):
                break  # it would be alone in the queue: then its tokens do not count
        for victim in victims:
            self._unqueue(victim)
            self._refuse(victim, self._queue_full(victim, now_s))

    def _excess(self, ticket: Ticket) -> Load:
        """By how much the queue would exceed its bounds; the tokens of a request that is alone in it do not count."""
        excess = Load(
            self.queued.num_sequences - self.bounds.max_queued, self.queued.num_tokens - self.bounds.max_queued_tokens
        )
        excess.add(ticket)
        if not self.queued.num_sequences:
            excess.num_tokens = 0
        return excess

    def _less_entitled(self, ticket: Ticket) -> Iterator[Ticket]:
        """Requests to refuse first: of lower priorities, then of tenants that hold more of the queue; newest first."""
        rank = _CLASSES.index(ticket.priority)
        for priority in reversed(_CLASSES[rank + 1 :]):
            yield from _newest_first(self._queues[priority])
        queue = self._queues[ticket.priority]
        held = queue.tokens_by_tenant()
        mine = held[ticket.tenant] + ticket.cost_tokens
        for other in _newest_first(queue):
            left = held[other.tenant] - other.cost_tokens
            if other.tenant != ticket.tenant and left >= mine:
                held[other.tenant] = left
                yield other

    def _check_deadline(self, ticket: Ticket, now_s: float) -> None:
        least_s = self._least_s(ticket, now_s)
        if now_s + least_s > ticket.deadline_s:
            raise _too_late(ticket, now_s, least_s)
        wait_s = self._wait_s(ticket, now_s)
        late_s = now_s + wait_s + least_s - ticket.deadline_s
        if late_s > 0:
            raise DeadlineUnreachable(
                f"the answer can probably not be finished in time: about {wait_s:.1f} s of work are queued before it; "
                "try again later or allow more time",
                retry_after_s=_bounded(late_s),
            )

    def _least_s(self, ticket: Ticket, now_s: float) -> float:
        """The least time it takes once it runs, even alone; 0 where nothing is known."""
        return max((self._pace.least_s(need, now_s) for need in ticket.needs), default=0.0)

    def _wait_s(self, ticket: Ticket, now_s: float) -> float:
        """How long it will probably queue; 0 where nothing is known."""
        rate = self._pace.drain.lately(now_s)
        if rate is None or self._is_next(ticket):
            return 0.0
        rank = _CLASSES.index(ticket.priority)
        above = sum(self._expected(other, now_s) for priority in _CLASSES[:rank] for other in self._queues[priority])
        queue = self._queues[ticket.priority]
        beside = sum(self._expected(other, now_s) for other in queue)
        own = sum(self._expected(one, now_s) for one in (ticket, *queue) if one.tenant == ticket.tenant)
        return (above + min(beside, own * max(1, queue.num_tenants))) / rate

    def _expected(self, ticket: Ticket, now_s: float) -> float:
        """How many tokens it will probably use."""
        key = (ticket.tenant or "", ticket.path)
        answer = self._pace.expected_answer(key, ticket.answer_tokens, now_s)
        return ticket.num_prompt_tokens + ticket.num_sequences * answer

    def _queue_full(self, ticket: Ticket, now_s: float) -> QueueFull:
        return QueueFull(
            f"{self.queued.num_sequences} sequences with up to {self.queued.num_tokens} tokens are queued, which "
            f"leaves no room for {ticket.cost_tokens} tokens more; try again later",
            retry_after_s=self._retry_after_s(ticket, now_s),
        )

    def _retry_after_s(self, ticket: Ticket, now_s: float) -> float:
        """When the queue will probably have room, by the measured drain rate."""
        rate = self._pace.drain.lately(now_s)
        if rate is None:
            return RETRY_AFTER_S
        excess = self._excess(ticket)
        share = max(
            excess.num_tokens / max(1, self.queued.num_tokens), excess.num_sequences / max(1, self.queued.num_sequences)
        )
        expected = sum(self._expected(other, now_s) for queue in self._queues.values() for other in queue)
        return _bounded(min(1.0, share) * expected / rate)

    def _unqueue(self, ticket: Ticket) -> None:
        self._queues[ticket.priority].remove(ticket)
        self.queued.take(ticket)

    def _refuse(self, ticket: Ticket, error: ServingError) -> None:
        self._close(ticket, error)
        ticket.decide(error)

    def _close(self, ticket: Ticket, error: ServingError) -> None:
        ticket.status = TicketStatus.OVER
        self.refusals[error.code] += 1

    def _measure(self, now_s: float) -> None:
        """Report what was computed since the last event, if work was queueing the whole time."""
        if self._measured is not None:
            begun_s, num_before = self._measured
            num_tokens = self._count_tokens()
            self._pace.drain.add(num_tokens - num_before, now_s - begun_s, now_s)
            self._measured = (now_s, num_tokens)


def _newest_first(queue: FairQueue[Ticket]) -> list[Ticket]:
    return sorted(queue, key=lambda ticket: ticket.order, reverse=True)


def _too_late(ticket: Ticket, now_s: float, least_s: float) -> DeadlineExceeded:
    left_s = max(0.0, ticket.deadline_s - now_s)
    return DeadlineExceeded(
        f"the answer cannot be finished in the {left_s:.3g} s that are left: even alone it takes at least "
        f"{least_s:.3g} s; allow more time, or ask for less"
    )


def _bounded(seconds: float) -> float:
    return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, seconds))
