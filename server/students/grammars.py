"""Compiled grammars of one student: tried out in a process that can be ended, then compiled here and kept.

Owned by the loop. Bounded in number, time and memory, and fair between tenants, who learn nothing of each other's.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec

from engines.config import MIB
from engines.grammar import GrammarCompiler, Vocabulary
from engines.grammar_process import TrialDied, TrialProcess, TrialTooLong
from engines.grammar_trial import WORK_BYTES, Outcome, Trial, Words, source_of, words_of
from engines.schema_loosening import Loosens, SchemaRule, whole
from models.errors import InvalidParameter, QueueFull, Stopping, Unavailable
from server.students.kept_grammars import Compiled, Kept, Key, Live
from server.telemetry.grammars import GrammarCounts
from server.tenant_line import TenantLine
from server.threads import run_in_daemon_thread

MAX_KEPT_BYTES = 64 * MIB
"""Per student. One grammar takes about 0.1 MB for an ordinary schema, a few MB for one of 64 KB."""
MAX_GRAMMAR_BYTES = 16 * MIB
MAX_LIVE_BYTES = 512 * MIB
"""Kept or used by requests that are not answered yet; where there are tenants, half of it for one."""
NUM_PROCESSES = 2
MAX_WAIT_S = 15.0
ABANDONED_S = 0.5
"""How much longer a trial runs for which nobody waits: most are over by then, and a process takes as long to start."""
RETRY_AFTER_S = 5.0
TOO_COSTLY = "the tools' schemas take too long or too much memory to compile; make them simpler"

logger = logging.getLogger(__name__)


class Process(Protocol):
    """What is needed of a `TrialProcess`."""

    @property
    def pid(self) -> int | None: ...

    def run(self, trial: Trial, /) -> Outcome: ...

    def end(self) -> None: ...

    def close(self) -> None: ...


MakeProcess = Callable[[Callable[[], Words]], Process]


class SchemaRefused(Exception):
    """`problem` is why the schema in the field `where` cannot be followed, `pointer` the place in it."""

    def __init__(self, where: str, pointer: str, problem: str) -> None:
        super().__init__(problem)
        self.where = where
        self.pointer = pointer
        self.problem = problem


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A grammar to be compiled, for all who ask for it meanwhile. `process` is where it runs, None while it waits."""

    key: Key
    trial: Trial
    result: asyncio.Future[Compiled]
    num_askers: int = 0
    process: Process | None = None
    begun_s: float = 0.0
    timer: asyncio.TimerHandle | None = None

    @property
    def tenant(self) -> str | None:
        return self.key[0]


class Compiler:
    """The student's vocabulary in the forms that are needed to compile, each made once, at first need, in a thread."""

    def __init__(self, vocabulary: Vocabulary, num_logits: int) -> None:
        self._vocabulary = vocabulary
        self._num_logits = num_logits
        self._lock = threading.Lock()
        self._words: Words | None = None
        self._compiler: GrammarCompiler | None = None

    def words(self) -> Words:
        with self._lock:
            if self._words is None:
                self._words = words_of(self._vocabulary, self._num_logits)
            return self._words

    def compiler(self) -> GrammarCompiler:
        """Raises: ConfigError, InvalidParameter: this student's answers cannot follow a grammar."""
        with self._lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(self._vocabulary, self._num_logits)
            return self._compiler


@dataclass(slots=True, kw_only=True, frozen=True)
class GrammarBounds:
    max_kept_bytes: int = MAX_KEPT_BYTES
    max_grammar_bytes: int = MAX_GRAMMAR_BYTES
    max_live_bytes: int = MAX_LIVE_BYTES
    num_processes: int = NUM_PROCESSES
    max_wait_s: float = MAX_WAIT_S
    abandoned_s: float = ABANDONED_S


class Grammars:
    """Grammars of one student. `close` ends its processes; nothing is compiled afterwards."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        num_logits: int,
        bounds: GrammarBounds | None = None,
        make_process: MakeProcess = TrialProcess,
    ) -> None:
        self._bounds = bounds or GrammarBounds()
        self._compiler = Compiler(vocabulary, num_logits)
        self._idle = [make_process(self._compiler.words) for _ in range(self._bounds.num_processes)]
        self._processes = tuple(self._idle)
        self._line: TenantLine[Job] = TenantLine(
            self._bounds.num_processes, what_waits="schemas wait to be compiled", retry_after_s=RETRY_AFTER_S
        )
        self._kept = Kept(self._bounds.max_kept_bytes)
        self._live = Live()
        self._jobs: dict[Key, Job] = {}
        self._is_closed = False
        self._counts = GrammarCounts()

    @property
    def counts(self) -> GrammarCounts:
        self._counts.num_bytes = self._live.num_bytes()
        return self._counts

    async def compile(
        self, rules: str, schemas: Sequence[SchemaRule], *, tenant: str | None, time_limit_s: float
    ) -> Compiled:
        """Compile a grammar from its rules and its schemas, within a time that begins with the work. When whoever asked
        is cancelled and nobody else asks for it, the work ends.

        Raises: SchemaRefused, InvalidParameter when it cannot be compiled or costs too much; QueueFull, Unavailable
        when it would have to wait for too long; Stopping.
        """
        key = (tenant, rules + msgspec.json.encode(schemas).decode())
        kept = self._kept.find(key)
        if kept is not None:
            self._counts.outcomes["kept"] += 1
            return kept
        max_bytes = self._bounds.max_grammar_bytes
        trial = Trial(rules=rules, schemas=list(schemas), time_limit_s=time_limit_s, max_bytes=max_bytes)
        job = self._jobs.get(key) or self._begin(key, trial)
        job.num_askers += 1
        try:
            return await asyncio.shield(job.result)
        finally:
            job.num_askers -= 1
            if not job.num_askers and not job.result.done():
                self._abandon(job)

    def close(self) -> None:
        """End the processes, and tell everybody who waits."""
        self._is_closed = True
        for job in list(self._jobs.values()):
            self._fail(job, Stopping("the student is being stopped", retry_after_s=RETRY_AFTER_S))
        for process in self._processes:
            process.close()

    def _begin(self, key: Key, trial: Trial) -> Job:
        if self._is_closed:
            raise Stopping("the student is being stopped", retry_after_s=RETRY_AFTER_S)
        loop = asyncio.get_running_loop()
        job = Job(key=key, trial=trial, result=loop.create_future())
        try:
            self._check_memory(job.tenant)
            self._line.push(job.tenant, job)
        except (QueueFull, Unavailable):
            self._counts.outcomes["turned_away"] += 1
            raise
        self._jobs[key] = job
        job.timer = loop.call_later(self._bounds.max_wait_s, self._turn_away, job)
        self._run_next()
        return job

    def _check_memory(self, tenant: str | None) -> None:
        """Raises: Unavailable while requests hold all the memory that there is for grammars."""
        most = self._bounds.max_live_bytes
        if self._live.num_bytes() >= most or (tenant is not None and self._live.num_bytes_of(tenant) >= most // 2):
            raise Unavailable(
                "the schemas of requests that are not answered yet take all the memory for them; try again later",
                retry_after_s=RETRY_AFTER_S,
            )

    def _run_next(self) -> None:
        while self._idle and (job := self._line.pop()) is not None:
            self._run(job)

    def _run(self, job: Job) -> None:
        _stop_timer(job)
        started = next((one for one in self._idle if one.pid is not None), self._idle[0])
        self._idle.remove(started)
        job.process, job.begun_s = started, time.perf_counter()
        done = run_in_daemon_thread(partial(self._work, started, job.trial))
        done.add_done_callback(partial(self._finish, job))

    def _work(self, process: Process, trial: Trial) -> Compiled:
        """What a thread does: first there, where it can be ended, then here, which takes as long as it took there."""
        compiler = self._compiler.compiler()
        try:
            outcome = self._tried(process, trial)
        except TrialTooLong:
            raise InvalidParameter(
                f"the schema takes longer than {trial.time_limit_s:g} s to compile (limits.grammar_timeout_s); "
                "make it simpler"
            ) from None
        except TrialDied as death:
            raise _error_of(death) from None
        if outcome.problem is not None:
            if outcome.where is not None:
                raise SchemaRefused(outcome.where, outcome.pointer, outcome.problem)
            raise InvalidParameter(outcome.problem)
        if outcome.num_bytes > self._bounds.max_grammar_bytes:
            raise InvalidParameter(
                f"the compiled schema takes {outcome.num_bytes / MIB:.1f} MiB, more than "
                f"{self._bounds.max_grammar_bytes / MIB:g}; make it simpler"
            )
        changed = {rule.name: rule for rule in outcome.changed}
        source = source_of(trial.rules, [changed.get(rule.name, rule) for rule in trial.schemas])
        loosened = tuple(outcome.loosened)
        return Compiled(grammar=compiler.compile(source), num_bytes=outcome.num_bytes, loosened=loosened)

    def _tried(self, process: Process, trial: Trial) -> Outcome:
        """What cannot be compiled within its time and memory is tried once more with less, where it may be loosened.

        Raises: TrialTooLong, TrialDied.
        """
        try:
            return process.run(trial)
        except (TrialTooLong, TrialDied) as error:
            is_to_blame = isinstance(error, TrialTooLong) or error.blames_trial
            loose = [rule for rule in trial.schemas if rule.loosens is Loosens.ANYTHING]
            if not loose or not is_to_blame or self._is_closed:
                raise
            least = {rule.name: whole(rule, TOO_COSTLY) for rule in loose}
        rules = [least[rule.name].rule if rule.name in least else rule for rule in trial.schemas]
        outcome = process.run(msgspec.structs.replace(trial, schemas=rules))
        names = {rule.name for rule in outcome.changed}
        return msgspec.structs.replace(
            outcome,
            changed=[*outcome.changed, *(one.rule for one in least.values() if one.rule.name not in names)],
            loosened=[*outcome.loosened, *(place for one in least.values() for place in one.loosened)],
        )

    def _finish(self, job: Job, done: "asyncio.Future[Compiled]") -> None:
        _stop_timer(job)
        assert job.process is not None
        self._idle.append(job.process)
        self._line.release(job.tenant)
        seconds = time.perf_counter() - job.begun_s
        self._counts.seconds += seconds
        error = done.exception()
        self._counts.outcomes["compiled" if error is None else "refused"] += 1
        if error is not None:
            logger.info("grammar refused tenant=%s seconds=%.3f error=%s", job.tenant, seconds, type(error).__name__)
            self._fail(job, error)
        else:
            num_bytes = done.result().num_bytes
            logger.info("grammar compiled tenant=%s seconds=%.3f bytes=%d", job.tenant, seconds, num_bytes)
            self._live.add(job.tenant, done.result())
            self._kept.add(job.key, done.result())
            self._forget(job)
            if not job.result.done():
                job.result.set_result(done.result())
        if not self._is_closed:
            self._run_next()

    def _turn_away(self, job: Job) -> None:
        self._line.remove(job.tenant, job)
        self._counts.outcomes["turned_away"] += 1
        self._fail(
            job,
            Unavailable(
                f"the schema waited {self._bounds.max_wait_s:g} s for others to be compiled; try again later",
                retry_after_s=RETRY_AFTER_S,
            ),
        )

    def _abandon(self, job: Job) -> None:
        """Nobody waits for it any more. One that runs may finish, if that takes no longer than to start afresh."""
        self._forget(job)
        job.result.cancel()
        if job.process is None:
            _stop_timer(job)
            self._line.remove(job.tenant, job)
        else:
            job.timer = asyncio.get_running_loop().call_later(self._bounds.abandoned_s, job.process.end)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._forget(job)
        if job.process is None:
            _stop_timer(job)
        if not job.result.done():
            job.result.set_exception(error)
            job.result.exception()  # asked for: nobody may be left to hear it

    def _forget(self, job: Job) -> None:
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]


def _stop_timer(job: Job) -> None:
    if job.timer is not None:
        job.timer.cancel()
        job.timer = None


def _error_of(death: TrialDied) -> InvalidParameter | Unavailable:
    if not death.blames_trial:
        logger.warning("grammar process ended error=%s", death)
        return Unavailable("the process that compiles schemas was ended; try again", retry_after_s=RETRY_AFTER_S)
    return InvalidParameter(
        f"the schema takes more than {WORK_BYTES // MIB} MiB to compile, or the grammar library fails on it; "
        "make it simpler"
    )
