"""When a process that ended is started again: soon the first time, later each time it does not last."""

import time
from collections.abc import Callable

FIRST_S = 1.0
LONGEST_S = 60.0
LASTING_S = 120.0
"""A process that served so long did not fail at its start: the next wait is the first one again."""


class Restarts:
    """Waits that double. `now_s` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._wait_s = FIRST_S
        self._due_s = 0.0
        self._began_s: float | None = None
        self.num_ended = 0

    @property
    def is_due(self) -> bool:
        return self._now_s() >= self._due_s

    @property
    def wait_s(self) -> float:
        """Until it is started again."""
        return max(0.0, self._due_s - self._now_s())

    def note_serving(self) -> None:
        """It is up."""
        self._began_s = self._now_s()

    def note_end(self) -> None:
        """It ended, or did not come up."""
        now_s = self._now_s()
        if self._began_s is not None and now_s - self._began_s >= LASTING_S:
            self._wait_s = FIRST_S
        self._began_s = None
        self._due_s = now_s + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_S)
        self.num_ended += 1
