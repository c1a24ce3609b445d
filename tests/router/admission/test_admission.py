"""Which requests start, queue, are refused, or lose their place in the queue, on a clock that the test sets."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.sequence import Finish, FinishReason, GenerationRequest, SamplingParams, Timings, Usage
from models.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull, ServingError
from router.admission.admission import Admission, AdmissionConfig
from router.admission.least_time import Need
from router.admission.pace import Pace
from router.admission.ticket import Bounds, Ticket, TicketStatus
from router.decision import Priority

BOUNDS = Bounds(max_running=2, max_running_tokens=1000, max_queued=3, max_queued_tokens=1000)
FAR_S = 1e6


@dataclass(slots=True, kw_only=True)
class Driver:
    """An admission with everything around it in the test's hands."""

    bounds: Bounds = BOUNDS
    now_s: float = 0.0
    num_tokens: int = 0
    is_ready: bool = True
    can_pause: bool = False
    pace: Pace = field(default_factory=Pace)
    decided: list[tuple[Ticket, ServingError | None]] = field(default_factory=list)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(
            self.bounds,
            self.pace,
            count_tokens=lambda: self.num_tokens,
            is_ready=lambda: self.is_ready,
            can_pause=self.can_pause,
        )

    def make(
        self,
        tenant: str | None = None,
        *,
        prompt: int = 50,
        answer: int = 50,
        least_answer: int = 1,
        num_sequences: int = 1,
        priority: Priority = Priority.NORMAL,
        deadline_s: float = FAR_S,
    ) -> Ticket:
        need = Need(
            path="full",
            head="cheap",
            num_prompt_tokens=prompt,
            num_uncached_tokens=prompt,
            num_answer_tokens=least_answer,
        )
        ticket = Ticket(
            tenant=tenant,
            path="full",
            needs=frozenset({need}),
            priority=priority,
            num_sequences=num_sequences,
            num_prompt_tokens=prompt,
            num_answer_tokens=answer,
            deadline_s=deadline_s,
            decide=lambda error: self.decided.append((ticket, error)),
        )
        return ticket

    def offer(self, *arguments: str, **fields: object) -> Ticket:
        ticket = self.make(*arguments, **fields)  # type: ignore[arg-type]
        self.admission.offer(ticket, self.now_s)
        return ticket

    def release(self, ticket: Ticket, num_used: int = 0, num_extra: float = 0.0) -> None:
        self.admission.release(ticket, self.now_s, num_used, num_extra)

    def error_of(self, ticket: Ticket) -> ServingError | None:
        return next(error for decided, error in self.decided if decided is ticket)

    def drain(self, tokens_per_s: int, seconds: float) -> None:
        """Let time go by while work is queued: only then is it measured."""
        self.now_s += seconds
        self.num_tokens += int(tokens_per_s * seconds)

    def learn(self, tenant: str | None = None, *, first_s: float, each_s: float, num_tokens: int) -> None:
        """Let one request of 50 prompt tokens run alone and take this long."""
        ticket = self.offer(tenant, answer=num_tokens)  # type: ignore[arg-type]
        begun_s = self.now_s
        self.now_s += first_s + each_s * (num_tokens - 1)
        times = Timings(queued_s=begun_s, admitted_s=begun_s, first_token_s=begun_s + first_s, finished_s=self.now_s)
        usage = Usage(num_prompt_tokens=50, num_cached_tokens=0, num_completion_tokens=num_tokens)
        request = GenerationRequest(
            id="s",
            prompt_token_ids=(0,) * 50,
            path="full",
            sampling=SamplingParams(max_tokens=num_tokens),
            cache_salt=tenant or "",
        )
        finish = Finish(reason=FinishReason.STOP, path="full", usage=usage, timings=times)
        self.pace.observe_finish(request, finish)
        self.release(ticket, 50 + num_tokens)


def is_running(ticket: Ticket) -> bool:
    return ticket.status is TicketStatus.RUNNING


def test_room_lets_in_at_once_and_the_rest_queues_until_somebody_ends() -> None:
    driver = Driver()
    tickets = [driver.offer() for _ in range(4)]
    assert [is_running(ticket) for ticket in tickets] == [True, True, False, False]
    driver.release(tickets[1])
    assert [ticket.status for ticket in tickets[1:3]] == [TicketStatus.OVER, TicketStatus.RUNNING]
    assert [error for _, error in driver.decided] == [None] * 3


def test_some_may_wait_in_the_engine_so_that_no_slot_is_empty() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_running=8, max_running_tokens=10_000, max_queued=100))
    assert [is_running(driver.offer()) for _ in range(12)] == [True] * 10 + [False] * 2


def test_tokens_bound_what_runs_not_only_requests() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_running=100))
    first, second = driver.offer(answer=850), driver.offer(answer=100)
    assert is_running(first)
    assert not is_running(second)
    driver.release(first)
    assert is_running(second)


def test_what_is_larger_than_the_bound_runs_alone() -> None:
    driver = Driver()
    small = driver.offer()
    large = driver.offer(answer=5000)
    assert not is_running(large)
    driver.release(small)
    assert is_running(large)
    assert not is_running(driver.offer())


def test_small_requests_do_not_pass_a_large_one_for_ever() -> None:
    driver = Driver()
    running = [driver.offer(answer=450), driver.offer(answer=450)]
    large = driver.offer(answer=850)
    small = driver.offer()
    driver.release(running[0])
    assert not is_running(large)
    assert not is_running(small)


def test_queue_is_bounded_in_sequences() -> None:
    driver = Driver()
    for _ in range(5):
        driver.offer()
    with pytest.raises(QueueFull, match="3 sequences"):
        driver.offer()
    assert driver.admission.refusals == {"queue_full": 1}


def test_queue_is_bounded_in_tokens() -> None:
    driver = Driver()
    for _ in range(2):
        driver.offer()
    driver.offer(answer=600)
    with pytest.raises(QueueFull):
        driver.offer(answer=600)
    assert not is_running(driver.offer(answer=100))


def test_choices_of_a_request_count_each() -> None:
    driver = Driver()
    driver.offer(num_sequences=2)
    driver.offer(num_sequences=2)
    with pytest.raises(QueueFull):
        driver.offer(num_sequences=2)


def test_queue_of_no_length_lets_in_or_refuses() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_queued=0))
    tickets = [driver.offer(), driver.offer()]
    with pytest.raises(QueueFull):
        driver.offer()
    driver.release(tickets[0])
    assert is_running(driver.offer())


def test_retry_after_is_the_measured_time_until_there_is_room() -> None:
    driver = Driver()
    for _ in range(5):
        driver.offer()
    with pytest.raises(QueueFull) as caught:
        driver.offer()
    assert caught.value.retry_after_s == 1.0
    driver.drain(50, seconds=10.0)
    with pytest.raises(QueueFull) as caught:
        driver.offer()  # a third of the 300 queued tokens must go, at 50 a second
    assert caught.value.retry_after_s == pytest.approx(2.0)


def test_rate_is_measured_only_while_work_is_queued() -> None:
    driver = Driver()
    driver.offer()
    driver.drain(1, seconds=1000.0)
    driver.offer()
    assert driver.pace.drain.tokens_per_s is None
    queued = driver.offer()
    driver.drain(700, seconds=2.0)
    driver.release(queued)
    assert driver.pace.drain.tokens_per_s == pytest.approx(700)


def test_higher_classes_go_first() -> None:
    driver = Driver()
    first = driver.offer()
    driver.offer()
    low, normal, high = (driver.offer(priority=Priority(word)) for word in ("low", "normal", "high"))
    for ticket in (first, high, normal):
        driver.release(ticket)
    assert [ticket for ticket, _ in driver.decided][2:] == [high, normal, low]


def test_low_ones_are_shed_first_and_the_newest_of_them() -> None:
    driver = Driver()
    driver.offer()
    driver.offer()
    older, newer = driver.offer(priority=Priority.LOW), driver.offer(priority=Priority.LOW)
    driver.offer()
    driver.offer()
    assert isinstance(driver.error_of(newer), QueueFull)
    driver.offer(priority=Priority.HIGH)
    assert isinstance(driver.error_of(older), QueueFull)
    with pytest.raises(QueueFull):
        driver.offer(priority=Priority.LOW)


def test_nobody_is_shed_when_that_would_not_help() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_queued_tokens=300))
    driver.offer()
    driver.offer()
    low = driver.offer(priority=Priority.LOW)
    driver.offer(answer=150)
    with pytest.raises(QueueFull):
        driver.offer(answer=200)
    assert low.status is TicketStatus.QUEUED


def test_a_full_queue_is_shared_between_tenants() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_queued=4))
    for _ in range(6):
        driver.offer("greedy")
    modest = [driver.offer("modest"), driver.offer("modest")]
    with pytest.raises(QueueFull):
        driver.offer("modest")
    assert all(ticket.status is TicketStatus.QUEUED for ticket in modest)
    with pytest.raises(QueueFull):
        driver.offer("greedy")


def test_tenants_take_turns_at_the_door() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_queued=20, max_queued_tokens=10_000))
    running = [driver.offer("a"), driver.offer("a")]
    queued = [driver.offer("a") for _ in range(4)] + [driver.offer("b") for _ in range(2)]
    for ticket in running:
        driver.release(ticket, 100)
    assert {ticket.tenant for ticket in queued if is_running(ticket)} == {"a", "b"}


def test_unused_tokens_are_no_reason_to_wait_for_the_others() -> None:
    """A tenant whose requests use little of what they allow is not put behind one whose requests use all of it."""
    driver = Driver(bounds=Bounds(max_running=1, max_running_tokens=9000, max_queued=99, max_queued_tokens=99_999))
    driver.offer("b", answer=50)
    for _ in range(4):
        driver.offer("a", answer=2000)
        driver.offer("b", answer=50)
    order = []
    for _ in range(8):
        ticket = next(ticket for ticket, _ in reversed(driver.decided) if is_running(ticket))
        order.append(ticket.tenant)
        driver.release(ticket, 100)
    assert order[1:7].count("a") == 3


def test_tenant_of_costly_rows_gets_its_share_of_time_not_of_rows() -> None:
    """Each request of `a` takes as long as three of `b`, for as many tokens."""
    driver = Driver(bounds=Bounds(max_running=1, max_running_tokens=9000, max_queued=99, max_queued_tokens=99_999))
    for _ in range(40):
        driver.offer("a")
        driver.offer("b")
    order = []
    for _ in range(40):
        ticket = next(ticket for ticket, _ in reversed(driver.decided) if is_running(ticket))
        order.append(ticket.tenant)
        driver.release(ticket, 100, 200.0 if ticket.tenant == "a" else 0.0)
    assert order.count("a") == 10


def test_deadline_nobody_could_keep_is_refused_at_once() -> None:
    driver = Driver()
    for _ in range(3):
        driver.learn(first_s=1.0, each_s=0.1, num_tokens=20)
    with pytest.raises(DeadlineExceeded, match=r"2 s.*at least 5\.9 s"):
        driver.offer(answer=50, least_answer=50, deadline_s=driver.now_s + 2.0)
    assert is_running(driver.offer(answer=5, least_answer=5, deadline_s=driver.now_s + 2.0))
    assert driver.admission.refusals == {"deadline_exceeded": 1}


def test_answer_that_may_be_short_is_refused_for_its_first_token_alone() -> None:
    driver = Driver()
    for _ in range(50):
        driver.learn(first_s=1.0, each_s=0.1, num_tokens=500)
    assert is_running(driver.offer(answer=500, deadline_s=driver.now_s + 1.1))
    with pytest.raises(DeadlineExceeded):
        driver.offer(answer=500, deadline_s=driver.now_s + 0.9)


def test_long_answers_of_one_tenant_refuse_no_short_deadline_of_another() -> None:
    driver = Driver()
    for _ in range(50):
        driver.learn("verbose", first_s=0.01, each_s=0.01, num_tokens=900)
    assert is_running(driver.offer("brief", answer=900, deadline_s=driver.now_s + 0.5))


def test_long_answers_of_one_tenant_do_not_lengthen_the_queue_of_another() -> None:
    refused = []
    for talker in ("verbose", "brief"):
        driver = Driver(bounds=replace(BOUNDS, max_queued_tokens=100_000))
        for _ in range(30):
            driver.learn(talker, first_s=0.01, each_s=0.01, num_tokens=900)
        for _ in range(3):
            driver.offer("brief", answer=900)
        driver.drain(100, seconds=10.0)
        try:
            driver.offer("brief", answer=900, deadline_s=driver.now_s + 10.0)
        except DeadlineUnreachable:
            refused.append(talker)
    assert refused == ["brief"]


def test_deadline_that_cannot_be_kept_after_queueing_ends_the_request_before_it_runs() -> None:
    driver = Driver()
    for _ in range(3):
        driver.learn(first_s=1.0, each_s=0.1, num_tokens=20)
    running = [driver.offer(), driver.offer()]
    queued = driver.offer(deadline_s=driver.now_s + 3.0)
    driver.now_s += 2.5
    driver.release(running[0])
    assert isinstance(driver.error_of(queued), DeadlineExceeded)


def test_drain_rate_of_long_ago_refuses_nobody() -> None:
    driver = Driver()
    tickets = [driver.offer() for _ in range(4)]
    driver.drain(1, seconds=10.0)
    for ticket in tickets:
        driver.release(ticket)
    driver.now_s += 1000.0
    for _ in range(3):
        driver.offer()
    assert driver.offer(deadline_s=driver.now_s + 1.0).status is TicketStatus.QUEUED


def test_crowded_times_are_not_taken_for_what_a_request_takes_alone() -> None:
    driver = Driver()
    beside = driver.offer()
    for _ in range(50):
        driver.learn(first_s=4.0, each_s=1.0, num_tokens=20)
    driver.release(beside)
    assert is_running(driver.offer(answer=20, least_answer=20, deadline_s=driver.now_s + 0.5))


def test_deadline_that_the_queue_would_break_is_refused_with_when_to_try_again() -> None:
    driver = Driver()
    for _ in range(4):
        driver.offer()
    driver.drain(20, seconds=10.0)
    with pytest.raises(DeadlineUnreachable) as caught:
        driver.offer(deadline_s=driver.now_s + 5.0)  # 200 tokens ahead and 100 of its own, at 20 a second
    assert caught.value.retry_after_s == pytest.approx(5.0)
    driver.offer(deadline_s=driver.now_s + 20.0)


def test_long_queue_of_another_tenant_does_not_make_one_late() -> None:
    driver = Driver(bounds=replace(BOUNDS, max_queued=20, max_queued_tokens=10_000))
    for _ in range(12):
        driver.offer("greedy")
    driver.drain(100, seconds=10.0)
    with pytest.raises(DeadlineUnreachable):
        driver.offer("greedy", deadline_s=driver.now_s + 5.0)
    assert driver.offer("modest", deadline_s=driver.now_s + 5.0).status is TicketStatus.QUEUED


def test_deadline_that_passed_in_the_queue_ends_before_anything_is_computed() -> None:
    driver = Driver()
    running = [driver.offer(), driver.offer()]
    late = driver.offer(deadline_s=3.0)
    next_one = driver.offer()
    driver.now_s = 4.0
    driver.release(running[0])
    assert isinstance(driver.error_of(late), DeadlineExceeded)
    assert is_running(next_one)


def test_stale_measurements_refuse_nobody() -> None:
    driver = Driver()
    for _ in range(3):
        driver.learn(first_s=10.0, each_s=1.0, num_tokens=100)
    driver.now_s += 1000.0
    assert is_running(driver.offer(least_answer=50, deadline_s=driver.now_s + 1.0))


def test_while_loading_more_goes_in_so_that_paths_that_are_there_are_served() -> None:
    driver = Driver(is_ready=False)
    assert [is_running(driver.offer()) for _ in range(5)] == [True] * 5
    assert not is_running(driver.offer())
    driver.is_ready = True
    driver.release(driver.decided[0][0])
    assert sum(is_running(ticket) for ticket, _ in driver.decided) == 4


def test_new_bounds_count_from_the_next_event_on() -> None:
    driver = Driver()
    running = [driver.offer() for _ in range(2)]
    queued = [driver.offer() for _ in range(3)]
    driver.admission.bounds = replace(BOUNDS, max_running=4)
    driver.release(running[0])
    assert all(is_running(ticket) for ticket in queued)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (AdmissionConfig(max_running_tokens=0), "max_running_tokens"),
        (AdmissionConfig(max_queued_tokens=0), "max_queued_tokens"),
        (AdmissionConfig(default_deadline_s=0.0), "default_deadline_s"),
    ],
)
def test_config_problems_are_named(config: AdmissionConfig, part: str) -> None:
    assert [problem.setting for problem in config.problems()] == [part]
    assert [part in problem.said for problem in config.problems()] == [True]


Act = Callable[[Driver, list[Ticket]], None]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["offer", "release", "wait"]),
            st.integers(0, 9),
            st.integers(1, 600),
            st.sampled_from(list(Priority)),
            st.sampled_from([None, "a", "b"]),
        ),
        max_size=60,
    )
)
def test_every_ticket_is_decided_once_and_the_books_are_straight(
    acts: list[tuple[str, int, int, Priority, str | None]],
) -> None:
    driver = Driver()
    tickets: list[Ticket] = []
    refused: list[Ticket] = []
    for act, number, answer, priority, tenant in acts:
        if act == "offer":
            ticket = driver.make(
                tenant,
                answer=answer,
                num_sequences=1 + number % 2,
                priority=priority,
                deadline_s=driver.now_s + 1 + number,
            )
            tickets.append(ticket)
            try:
                driver.admission.offer(ticket, driver.now_s)
            except ServingError:
                refused.append(ticket)
        elif act == "wait":
            driver.drain(answer, seconds=number / 4)
        elif tickets:
            driver.release(tickets[number % len(tickets)], answer)
        check(driver, tickets, refused)
    for ticket in tickets:
        driver.release(ticket)
    assert driver.admission.running.num_tokens == driver.admission.queued.num_tokens == 0
    assert all(ticket.status is TicketStatus.OVER for ticket in tickets)


def check(driver: Driver, tickets: list[Ticket], refused: list[Ticket]) -> None:
    told = [ticket for ticket, _ in driver.decided]
    assert len(set(map(id, [*told, *refused]))) == len(told) + len(refused)
    for status, load in (
        (TicketStatus.RUNNING, driver.admission.running),
        (TicketStatus.QUEUED, driver.admission.queued),
    ):
        held = [ticket for ticket in tickets if ticket.status is status]
        assert load.num_sequences == sum(ticket.num_sequences for ticket in held)
        assert load.num_tokens == sum(ticket.cost_tokens for ticket in held)
    queued = [ticket for ticket in tickets if ticket.status is TicketStatus.QUEUED]
    assert driver.admission.num_waiting == len(queued)
    assert driver.admission.queued.num_sequences <= BOUNDS.max_queued
    assert len(queued) <= 1 or driver.admission.queued.num_tokens <= BOUNDS.max_queued_tokens
    if queued:  # a request waits only while another one runs
        assert driver.admission.running.num_sequences
