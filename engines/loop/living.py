"""The living sequences of an engine: those it has accepted, from any thread, and not ended yet."""

import threading
import time

from engines.loop.commands import Abort, Accept, Commands, Wake
from engines.sequence import Sequence
from models.errors import EngineUnhealthy, InvalidParameter, QueueFull, ServingError

RETRY_AFTER_S = 1.0
MAX_BACKGROUND = 2


class LivingSequences:
    """At most `capacity` at a time. An accepted sequence goes to the engine's thread as a command.

    `stop` ends accepting for good, `fail` until `recover`. Those in the background take nobody's place, and nothing
    waits for their end; there are at most `MAX_BACKGROUND`. All methods may be called from any thread.
    """

    def __init__(self, capacity: int, commands: Commands) -> None:
        self.num_accepted = 0
        self.error: ServingError | None = None
        self.error_detail: str | None = None
        self.abort_at_s: float | None = None
        self._capacity = capacity
        self._commands = commands
        self._ids: set[str] = set()
        self._background: set[str] = set()
        self._is_stopping = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> set[str]:
        """All of them, also those in the background."""
        with self._lock:
            return self._ids | self._background

    def accept(self, sequence: Sequence) -> None:
        """Raises: EngineUnhealthy, QueueFull, InvalidParameter for an id that a living sequence has."""
        with self._lock:
            if self.error is not None or self._is_stopping:
                raise self._refusal()
            ids = self._background if sequence.in_background else self._ids
            if len(ids) >= (MAX_BACKGROUND if sequence.in_background else self._capacity):
                raise QueueFull(
                    f"{len(ids)} requests are running or queued, which is the limit; try again later",
                    retry_after_s=RETRY_AFTER_S,
                )
            if sequence.id in self._ids or sequence.id in self._background:
                raise InvalidParameter(f"a sequence {sequence.id!r} is running already")
            ids.add(sequence.id)
            self.num_accepted += not sequence.in_background
            # Under the lock: once new sequences are refused, none may be queued behind the engine's last look.
            self._commands.put(Accept(sequence=sequence))

    def _refusal(self) -> EngineUnhealthy:
        if self.error is None:
            return EngineUnhealthy("the server is shutting down")
        return EngineUnhealthy(self.error.message, retry_after_s=self.error.retry_after_s)

    def recover(self) -> None:
        """What failed works again: accept new sequences."""
        with self._lock:
            self.error = self.error_detail = None

    def abort(self, sequence_id: str) -> None:
        self._commands.put(Abort(sequence_id=sequence_id))

    def end(self, sequence_id: str) -> None:
        """Forget a sequence that has ended."""
        with self._lock:
            self._ids.discard(sequence_id)
            self._background.discard(sequence_id)

    def fail(self, error: ServingError, detail: str) -> set[str]:
        """Refuse new sequences with `error` until `recover`; returns the living ids. `detail` is for operators only."""
        with self._lock:
            self.error_detail = detail
            self.error = error
            return self._ids | self._background

    def stop(self, grace_s: float) -> None:
        """Refuse new sequences from now on; the living ones have `grace_s` seconds to end."""
        with self._lock:
            self._is_stopping = True
        self.abort_at_s = time.monotonic() + grace_s
        self._commands.put(Wake())

    def is_over(self) -> bool:
        """Whether to stop serving: asked to, and nothing left to do or no time left for it."""
        if self.abort_at_s is None:
            return False
        return not self._ids or time.monotonic() >= self.abort_at_s
