"""What other threads ask of the engine's thread, which does it between two steps."""

import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from models.errors import EngineUnhealthy

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Commands:
    """Filled by any thread, emptied by the engine's. `is_taken` says whether that thread runs."""

    def __init__(self, is_taken: Callable[[], bool]) -> None:
        self._is_taken = is_taken
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, command: Callable[[], None]) -> None:
        self._queue.put(command)

    def wake(self) -> None:
        """Let the engine's thread look around, should it be waiting."""
        self._queue.put(None)

    def ask(self, what: str, work: Callable[[], T], limit_s: float) -> T:
        """The result of `work`, done on the engine's thread; what it raises stays its own affair there. Blocks.

        Raises: EngineUnhealthy when that thread does not run, does not answer within `limit_s`, or `work` failed.
        """
        if not self._is_taken():
            raise EngineUnhealthy("the engine's thread does not run")
        answer: Future[T] = Future()
        self.put(lambda: _fulfil(answer, what, work))
        if not wait([answer], limit_s).done and answer.cancel():
            raise EngineUnhealthy(f"the engine's thread did not answer within {limit_s:g} s")
        return answer.result()

    def take(self, wait_s: float | None = None) -> None:
        """Carry out what was asked for; wait for the first up to `wait_s`."""
        try:
            command = self._queue.get(block=wait_s is not None, timeout=wait_s)
            while True:
                if command is not None:
                    command()
                command = self._queue.get_nowait()
        except queue.Empty:
            return


def _fulfil(answer: Future[T], what: str, work: Callable[[], T]) -> None:
    """Do the work, unless nobody waits for it any more."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(work())
    except Exception as error:
        logger.exception("%s failed", what)
        answer.set_exception(EngineUnhealthy(f"the {what} failed: {error!r}"))
