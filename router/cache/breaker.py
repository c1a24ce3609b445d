"""A breaker: after some failures in a row a thing is left alone for a while, then tried once."""

import time
from collections.abc import Callable


class Breaker:
    """Owned by the loop. Nothing here can stick: a try whose outcome is never told is followed by the next one."""

    def __init__(self, max_failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_failures, self._pause_s = max_failures, pause_s
        self._clock = clock
        self._num_failures = 0
        self._next_try_s = 0.0

    @property
    def is_open(self) -> bool:
        return self._num_failures >= self._max_failures

    def allows(self) -> bool:
        """Whether to try now. While it is open, one caller per pause may."""
        if not self.is_open:
            return True
        if self._clock() < self._next_try_s:
            return False
        self._begin_pause()
        return True

    def succeed(self) -> bool:
        """Whether this closed it."""
        was_open, self._num_failures = self.is_open, 0
        return was_open

    def fail(self) -> bool:
        """Whether this opened it."""
        was_open = self.is_open
        self._num_failures += 1
        if self.is_open:
            self._begin_pause()
        return self.is_open and not was_open

    def _begin_pause(self) -> None:
        self._next_try_s = self._clock() + self._pause_s
