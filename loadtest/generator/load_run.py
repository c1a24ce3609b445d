"""One run in one generator process: asks what is repeated, starts the clock, plays its share of the sessions, ends.

With several workers, worker w of W plays the sessions w, w + W, ... of one and the same plan.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import gevent
from gevent.event import Event
from gevent.pool import Group, Pool

from loadtest.generator.chunks import clock
from loadtest.generator.streaming import StreamingClient
from loadtest.measure.record import Record
from loadtest.traffic.schedules import moments
from loadtest.traffic.sessions import Session, SessionPlan
from loadtest.traffic.workload import Workload

PRIMING_AT_ONCE = 4
NO_CACHE = (None, "bypass")
GIVEN_UP = "no end within the time that the schedule leaves for it (drain_s)"


@dataclass(slots=True, kw_only=True)
class Part:
    """Which of how many workers this process is."""

    index: int = 0
    num_workers: int = 1


@dataclass(kw_only=True)
class LoadRun:
    """`note` is given every record once it is over, `ended` called once, when nothing runs any more."""

    workload: Workload
    seed: int
    url: str
    part: Part
    note: Callable[[Record], None]
    ended: Callable[[], None]
    key_env: str | None = None
    cpu_share: float = 0.0
    _started: Event = field(default_factory=Event)
    _sessions: Group = field(default_factory=Group)
    _is_begun: bool = False
    _is_stopped: bool = False

    def __post_init__(self) -> None:
        self.plan = SessionPlan(self.workload, self.seed)
        self.now_s: Callable[[], float] = clock(time.perf_counter())
        self._client = StreamingClient(url=self.url, now_s=self.seconds, patience_s=self.workload.schedule.drain_s)
        self._indices = count(self.part.index, self.part.num_workers)
        self._users = count()
        schedule = self.workload.schedule
        self.start_s, self.end_s = schedule.warm_up_s, schedule.warm_up_s + schedule.duration_s

    def seconds(self) -> float:
        """Since the start, which is set anew when the clock starts."""
        return self.now_s()

    def play(self) -> None:
        """Called by every user. Returns when that user has nothing left to do."""
        if not self._is_begun:
            self._is_begun = True
            self._prime()
            self.now_s = clock(time.perf_counter())
            gevent.spawn(self._supervise)
            gevent.spawn(self._watch_cpu)
            self._started.set()
            if self.workload.schedule.is_open:
                self._sessions.spawn(self._follow_schedule).join()
                return
        self._started.wait()
        if not self.workload.schedule.is_open:
            self._sessions.spawn(self._loop).join()

    def stop(self) -> None:
        """Now: what still runs is given up."""
        if not self._is_stopped:
            self._is_stopped = True
            self._sessions.kill()
            self.ended()

    def _prime(self) -> None:
        """Ask once what will be repeated, if the server has a cache at all."""
        mine = range(self.part.index, self.plan.population, self.part.num_workers)
        pool = Pool(PRIMING_AT_ONCE)
        for number in mine:
            if number == mine.start and self._ask_repeated(number) in NO_CACHE:
                return
            pool.spawn(self._ask_repeated, number)
        pool.join()

    def _ask_repeated(self, number: int) -> str | None:
        """What the server says of its cache."""
        session = self.plan.repeated(number)
        record = self._record(session, 0, 0.0)
        self._client.send(self.plan.body(session, 0, []), self._headers(session), record, leaves=False)
        return record.cache

    def _follow_schedule(self) -> None:
        """Each session at its moment, whatever became of those before it."""
        mine = moments(self.workload.schedule, self.seed)[self.part.index :: self.part.num_workers]
        for index, moment in zip(self._indices, mine, strict=False):
            session = self.plan.session(index)
            gevent.sleep(max(0.0, moment - self.now_s()))
            self._sessions.spawn(self._play_session, session, moment)

    def _loop(self) -> None:
        """The users of a closed loop begin one after the other within the first half of the warm-up."""
        concurrency = self.workload.schedule.concurrency or 1
        share = next(self._users) * self.part.num_workers / concurrency
        gevent.sleep(min(share, 1.0) * self.start_s / 2)
        while self.now_s() < self.end_s:
            session = self.plan.session(next(self._indices))
            self._play_session(session, self.now_s())

    def _play_session(self, session: Session, moment: float) -> None:
        said: list[str] = []
        for turn in range(len(session.texts)):
            if turn:
                gevent.sleep(self.workload.sessions.think_s)
            record = self._record(session, turn, self.now_s() if turn else moment)
            body, leaves = self.plan.body(session, turn, said), turn in session.leaves
            try:
                said.append(self._client.send(body, self._headers(session), record, leaves=leaves))
            except gevent.GreenletExit:
                record.failure, record.ended_s = GIVEN_UP, self.now_s()
                raise
            finally:
                self.note(record)
            if not record.is_complete:
                return

    def _record(self, session: Session, turn: int, scheduled_s: float) -> Record:
        return Record(
            session=session.index,
            turn=turn,
            task=session.task,
            language=session.language,
            tenant=session.tenant,
            scheduled_s=scheduled_s,
            sent_s=scheduled_s,
            is_repeat=session.is_repeat,
            is_bound=session.is_bound,
        )

    def _headers(self, session: Session) -> dict[str, str]:
        tenant = self.plan.tenants.get(session.tenant or "")
        variable = self.key_env if tenant is None or tenant.key_env is None else tenant.key_env
        return {} if variable is None else {"Authorization": f"Bearer {os.environ[variable]}"}

    def _supervise(self) -> None:
        gevent.sleep(self.end_s)
        self._sessions.join(timeout=self.workload.schedule.drain_s)
        self.stop()

    def _watch_cpu(self) -> None:
        """This process's share of one core within the measured window."""
        gevent.sleep(self.start_s)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        gevent.sleep(self.end_s - self.start_s)
        self.cpu_share = (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
