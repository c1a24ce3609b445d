"""What cuts an answer short: its client disconnects, or its deadline passes."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from starlette.types import Receive

from server.students.admission_gate import Terms
from server.students.event_bridge import ClientGone, EventStream

T = TypeVar("T")


class Cancellation:
    """Ends what one request waits for: the work before there is a stream, then the stream. Owned by the loop."""

    def __init__(self) -> None:
        self._cause: Exception | None = None
        self._work: asyncio.Task[Any] | None = None
        self._stream: EventStream | None = None

    @property
    def is_cancelled(self) -> bool:
        return self._cause is not None

    def cancel(self, cause: Exception) -> None:
        """Raise `cause` in whoever waits; of several causes, the first."""
        self._cause = self._cause or cause
        if self._work is not None:
            self._work.cancel()
        if self._stream is not None:
            self._stream.fail(self._cause)

    def watch(self, stream: EventStream) -> None:
        """Fail this stream once the answer is cancelled."""
        self._stream = stream
        if self._cause is not None:
            stream.fail(self._cause)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`. Raises: the cause, when the answer is cancelled meanwhile."""
        if self._cause is not None:
            work.close()
            raise self._cause
        task = asyncio.get_running_loop().create_task(work)
        self._work = task
        try:
            return await task
        except asyncio.CancelledError:
            if self._cause is None:
                raise
            raise self._cause from None
        finally:
            self._work = None


@contextlib.contextmanager
def cancelled_by(receive: Receive, terms: Terms) -> Iterator[Cancellation]:
    """A cancellation that happens when the client disconnects or the deadline passes."""
    cancellation = Cancellation()
    loop = asyncio.get_running_loop()
    timer = loop.call_later(terms.deadline_s - time.monotonic(), cancellation.cancel, terms.too_late())
    watcher = loop.create_task(_await_disconnect(receive, cancellation))
    try:
        yield cancellation
    finally:
        timer.cancel()
        watcher.cancel()


async def _await_disconnect(receive: Receive, cancellation: Cancellation) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    cancellation.cancel(ClientGone())
