"""The progress of a job on our own engine: when each sequence got its tokens, and when the student is loaded."""

import threading
import time
from collections.abc import Callable, Sequence

from engines.contract import Engine
from engines.sequence import SequenceEvent
from models.errors import EngineFault

LOAD_TIMEOUT_S = 120.0
JOB_TIMEOUT_S = 240.0
POLL_S = 0.01


class Progress:
    """When every sequence of a job got its tokens. Written by the engine thread, read once `wait` has returned."""

    def __init__(self, sequence_ids: Sequence[str]) -> None:
        self.token_times_s: dict[str, list[float]] = {name: [] for name in sequence_ids}
        self.num_cached_tokens = 0
        self._open = set(sequence_ids)
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def add(self, events: Sequence[SequenceEvent]) -> None:
        now = time.perf_counter()
        with self._changed:
            for event in events:
                self.token_times_s[event.sequence_id] += [now] * len(event.token_ids)
                if event.finish is not None:
                    self._open.discard(event.sequence_id)
                    self._error = event.finish.error or self._error
                    self.num_cached_tokens += event.finish.usage.num_cached_tokens
            self._changed.notify_all()

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Raises: the first error a sequence ended with; TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: is_done() or self._error is not None, JOB_TIMEOUT_S):
                raise TimeoutError(f"{len(self._open)} sequences had not finished after {JOB_TIMEOUT_S:g} s")
        if self._error is not None:
            raise self._error

    def is_finished(self, sequence_id: str) -> bool:
        return sequence_id not in self._open

    def wait_all(self) -> None:
        self.wait(lambda: not self._open)


def wait_until_loaded(engine: Engine) -> None:
    """Raises: EngineFault when it cannot load; TimeoutError."""
    deadline_s = time.monotonic() + LOAD_TIMEOUT_S
    while not all(path.is_servable for path in engine.status().paths):
        if engine.status().error is not None:
            raise EngineFault(f"the engine did not load: {engine.status().error}")
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the student was not loaded after {LOAD_TIMEOUT_S:g} s")
        time.sleep(POLL_S)
