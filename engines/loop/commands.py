"""Commands from other threads, which the engine's thread carries out between two steps."""

import logging
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from engines.sequence import Sequence, SequenceState
from models.errors import EngineUnhealthy

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, frozen=True)
class Accept:
    """Queue a sequence that was accepted."""

    sequence: Sequence


@dataclass(slots=True, kw_only=True, frozen=True)
class Abort:
    """End a sequence, if it has not ended yet."""

    sequence_id: str


@dataclass(slots=True, kw_only=True, frozen=True)
class FailToLoad:
    """Give up: the student cannot be loaded."""

    cause: Exception


@dataclass(slots=True, frozen=True)
class Wake:
    """Wake the engine's thread, in case it is waiting for work."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Question(Generic[T]):
    """A question that only the engine's thread can answer; the thread that asks waits for the reply."""

    subject: ClassVar[str]
    reply: Future[T] = field(default_factory=Future)

    def answer(self, find: Callable[[], T]) -> None:
        """Find the answer, unless the thread that asked has stopped waiting."""
        if not self.reply.set_running_or_notify_cancel():
            return
        try:
            self.reply.set_result(find())
        except Exception as error:
            logger.exception("%s failed", self.subject)
            self.reply.set_exception(EngineUnhealthy(f"the {self.subject} failed: {error!r}"))


@dataclass(slots=True, kw_only=True, frozen=True)
class ListSequences(Question[list[SequenceState]]):
    """What is the state of every sequence that has not ended?"""

    subject: ClassVar[str] = "list of sequences"


@dataclass(slots=True, kw_only=True, frozen=True)
class Audit(Question[list[str]]):
    """What is inconsistent in the engine's bookkeeping?"""

    subject: ClassVar[str] = "audit"


Command = Accept | Abort | FailToLoad | Wake | Question[Any]


class Commands:
    """A queue that any thread fills and the engine's thread empties. `is_taken` says whether that thread runs, `wake`
    wakes it where it waits for something else."""

    def __init__(self, is_taken: Callable[[], bool], wake: Callable[[], None] | None = None) -> None:
        self._is_taken = is_taken
        self._wake = wake
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, command: Command) -> None:
        self._queue.put(command)
        if self._wake is not None:
            self._wake()

    def ask(self, question: Question[T], limit_s: float) -> T:
        """The answer, found on the engine's thread, which survives an error in finding it. Blocks.

        Raises: EngineUnhealthy when that thread does not run or does not answer within `limit_s`, or finding it failed.
        """
        if not self._is_taken():
            raise EngineUnhealthy("the engine's thread is not running")
        self.put(question)
        if not wait([question.reply], limit_s).done and question.reply.cancel():
            raise EngineUnhealthy(f"the engine's thread did not answer within {limit_s:g} s")
        return question.reply.result()

    def take(self, wait_s: float | None = None) -> Iterator[Command]:
        """The commands in order, until none is left; waits up to `wait_s` for the first."""
        try:
            yield self._queue.get(block=wait_s is not None, timeout=wait_s)
            while True:
                yield self._queue.get_nowait()
        except queue.Empty:
            return
