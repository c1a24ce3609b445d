"""Students added and removed while the server runs: opened and stopped in the background."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from models.errors import BadRequest, InvalidParameter, NotFound, ServingError, Stopping
from router.pool import name_problem
from server.context import Context
from server.lifecycle.memory import give_memory_back
from server.settings.config import StudentConfig
from server.students.open_student import Opened
from server.students.student import ServedStudent
from server.threads import run_in_daemon_thread

logger = logging.getLogger(__name__)

LAST_OPENING_S = 2.0
"""How long `close` waits for an opening: a process that exits while a session is being made may crash."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Arrival:
    """A student that is being opened, or that could not be: then `error` says why."""

    name: str
    config: StudentConfig
    error: str | None = None


class StudentChanges:
    """Adds and removes students of one server. Owned by the loop; `arrivals` are being opened, or could not be."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._opening: asyncio.Future[Opened] | None = None
        self.arrivals: dict[str, Arrival] = {}

    def add(self, name: str, config: StudentConfig) -> Arrival:
        """Open a student under this name in the background.

        Raises: InvalidParameter for a name that is taken; Stopping when the server is stopping.
        """
        self._check_staying()
        coming = [arrival.name for arrival in self.arrivals.values() if arrival.error is None]
        taken = [student.name for student in self._context.students]
        problem = name_problem(name, [*taken, *coming, *self._context.leaving])
        if problem is not None:
            raise InvalidParameter(problem, param="name")
        arrival = self.arrivals[name] = Arrival(name=name, config=replace(config, name=name))
        self._begin(self._open(arrival))
        return arrival

    def remove(self, name: str) -> ServedStudent | Arrival:
        """Take a student out of the pool and stop it in the background, or forget one that could not be opened.

        Raises: NotFound; BadRequest while it is being opened, or sequences run and it was not drained first.
        """
        arrival = self.arrivals.get(name)
        if arrival is not None and arrival.error is None:
            raise BadRequest(f"student `{name}` is still being opened; remove it when that has ended")
        if arrival is not None:
            return self.arrivals.pop(name)
        self._check_not_leaving(name)
        student = self._context.pool.take_out(name)
        self._context.leaving[name] = student
        self._begin(self._stop(student))
        return student

    def resume(self, name: str) -> ServedStudent:
        """Undo a drain. Raises: NotFound, also for a student that is being removed."""
        self._check_not_leaving(name)
        return self._context.pool.resume(name)

    async def close(self) -> None:
        """Cancel what is under way; an engine built from now on is never started. The caller stops the others."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._opening is not None:
            await asyncio.wait([self._opening], timeout=LAST_OPENING_S)
            if not self._opening.cancel() and not self._opening.cancelled():
                self._opening.exception()  # retrieved, so that asyncio does not complain

    def _check_staying(self) -> None:
        if self._context.drain.is_draining:
            raise Stopping("this server is stopping and takes no more students", retry_after_s=1.0)

    def _check_not_leaving(self, name: str) -> None:
        if name in self._context.leaving:
            raise NotFound(f"student `{name}` was removed already and is stopping")

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, arrival: Arrival) -> None:
        try:
            await self._start(await self._build(arrival.config))
        except ServingError as error:
            logger.warning("student not opened name=%s error=%s", arrival.name, error)
            self.arrivals[arrival.name] = replace(arrival, error=error.message)
        except Exception as error:  # whatever a broken file makes a library raise: it must not stay "opening" for ever
            logger.exception("opening a student failed name=%s", arrival.name)
            self.arrivals[arrival.name] = replace(arrival, error=f"it could not be opened: {error}")
        else:
            del self.arrivals[arrival.name]
            logger.info("student added name=%s", arrival.name)

    async def _build(self, config: StudentConfig) -> Opened:
        """One at a time: opening a student measures and takes memory. Raises: what the opener raises; Stopping."""
        async with self._turn:
            self._check_staying()
            self._opening = run_in_daemon_thread(partial(self._context.opener, config))
            try:
                opened = await asyncio.shield(self._opening)
            except Exception:
                self._opening = None
                raise
            self._opening = None  # not when cancelled: `close` waits for it
        self._check_staying()
        return opened

    async def _start(self, opened: Opened) -> None:
        """Raises: what the engine's start raises; by then the student is out of the pool and its engine stopped."""
        student = self._context.serve(opened)
        try:
            student.bridge.attach()
        except Exception:
            self._context.pool.drain(student.name)
            self._context.pool.take_out(student.name)
            await self._end(student, 0.0)
            self._context.metrics.forget_student(student.name)
            raise
        self._context.quality.apply_settings()

    async def _end(self, student: ServedStudent, grace_s: float) -> None:
        """Stop an engine, which ends the sequences it still runs."""
        try:
            await run_in_daemon_thread(partial(student.engine.stop, grace_s))
            student.grammars.close()
        except Exception:
            logger.exception("stopping a student failed name=%s", student.name)

    async def _stop(self, student: ServedStudent) -> None:
        await self._end(student, self._context.config.grace_s)
        # Not when cancelled: the end of the server stops the engines that are still leaving.
        name = student.name
        del self._context.leaving[name], student
        self._context.metrics.forget_student(name)
        self._context.quality.forget_student(name)
        await run_in_daemon_thread(give_memory_back)
        logger.info("student removed name=%s", name)
