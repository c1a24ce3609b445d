"""Students that come and go while the server runs: opened and stopped in the background, and what became of them."""

import asyncio
import ctypes
import gc
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from models.errors import InvalidParameter, NotFound, ServingError
from router.pool import name_problem
from server.config import StudentConfig
from server.context import Context
from server.student import ServedStudent

logger = logging.getLogger(__name__)


def give_memory_back() -> None:
    """Return what a removed student held to the system: an engine is full of cycles, which wait for the collector,
    and glibc keeps freed weights until it is told to trim. Other C libraries have no such call."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass(slots=True, kw_only=True, frozen=True)
class Arrival:
    """A student that is being opened, or that could not be: then `error` says why."""

    name: str
    config: StudentConfig
    error: str | None = None


class Roster:
    """Owned by the loop, and by one server."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()
        self.arrivals: dict[str, Arrival] = {}

    def add(self, name: str, config: StudentConfig) -> Arrival:
        """Open a student under this name in the background. Raises: InvalidParameter for a name that is taken."""
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

        Raises: NotFound; BadRequest while sequences run, unless it was drained first.
        """
        arrival = self.arrivals.get(name)
        if arrival is not None and arrival.error is not None:
            return self.arrivals.pop(name)
        if name in self._context.leaving:
            raise NotFound(f"student `{name[:200]}` was removed already and is stopping")
        student = self._context.pool.take_out(name)
        self._context.leaving[name] = student
        self._begin(self._stop(student))
        return student

    async def close(self) -> None:
        """Give up what is still under way; engines are the caller's to stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, arrival: Arrival) -> None:
        try:
            opened = await asyncio.to_thread(self._context.opener, arrival.config)
            student = self._context.serve(opened)
        except ServingError as error:
            logger.warning("student not opened name=%s error=%s", arrival.name, error)
            self.arrivals[arrival.name] = replace(arrival, error=error.message)
        except Exception as error:  # what a strange file makes a library raise must not leave it "opening" for ever
            logger.exception("opening a student failed name=%s", arrival.name)
            self.arrivals[arrival.name] = replace(arrival, error=f"it could not be opened: {error}")
        else:
            del self.arrivals[arrival.name]
            student.bridge.attach()
            logger.info("student added name=%s", student.name)

    async def _stop(self, student: ServedStudent) -> None:
        try:
            await asyncio.to_thread(student.engine.stop, self._context.config.grace_s)
        except Exception:
            logger.exception("stopping a student failed name=%s", student.name)
        # Not when cancelled: whoever ends the server stops the engines that are still leaving.
        name = student.name
        del self._context.leaving[name], student
        await asyncio.to_thread(give_memory_back)
        logger.info("student removed name=%s", name)
