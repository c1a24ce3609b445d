"""What ends an answer before its end: the client that leaves, and the deadline."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from starlette.types import Receive

from server.students.admission_gate import Terms
from server.students.event_bridge import ClientGone, EventStream

T = TypeVar("T")


class Guard:
    """Ends an answer early: its stream, or what is done before there is one. Owned by the loop."""

    def __init__(self) -> None:
        self._failure: Exception | None = None
        self._stream: EventStream | None = None
        self._work: asyncio.Task[Any] | None = None

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        if self._work is not None:
            self._work.cancel()
        if self._stream is not None:
            self._stream.fail(self._failure)

    def hold(self, stream: EventStream) -> None:
        self._stream = stream
        if self._failure is not None:
            stream.fail(self._failure)

    async def race(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what may take a while. Raises: what the guard fails with meanwhile."""
        if self._failure is not None:
            work.close()
            raise self._failure
        task = asyncio.get_running_loop().create_task(work)
        self._work = task
        try:
            return await task
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            raise self._failure from None
        finally:
            self._work = None


@contextlib.contextmanager
def guarded(receive: Receive, terms: Terms) -> Iterator[Guard]:
    """End the work when the client leaves or the time is up."""
    guard = Guard()
    loop = asyncio.get_running_loop()
    timer = loop.call_later(terms.deadline_s - time.monotonic(), guard.fail, terms.too_late())
    watcher = loop.create_task(_watch(receive, guard))
    try:
        yield guard
    finally:
        timer.cancel()
        watcher.cancel()


async def _watch(receive: Receive, guard: Guard) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    guard.fail(ClientGone())
