"""A circuit breaker: after several failures in a row, calls stop for a pause, then one trial call is let through."""

import time
from collections.abc import Callable


class Breaker:
    """Has one owner. While it is open, one trial call is allowed per pause. A trial that never reports its outcome
    only costs that pause: the next one is allowed after it."""

    def __init__(self, max_failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_failures, self._pause_s = max_failures, pause_s
        self._clock = clock
        self._num_failures = 0
        self._next_trial_s = 0.0

    @property
    def is_open(self) -> bool:
        return self._num_failures >= self._max_failures

    @property
    def is_trial_due(self) -> bool:
        """Whether the pause of an open breaker is over."""
        return self._clock() >= self._next_trial_s

    def allows(self) -> bool:
        """Whether to call now. While it is open, one caller per pause may."""
        if not self.is_open:
            return True
        if not self.is_trial_due:
            return False
        self._begin_pause()
        return True

    def succeed(self) -> bool:
        """Report a success; returns whether it closed the breaker."""
        was_open, self._num_failures = self.is_open, 0
        return was_open

    def fail(self) -> bool:
        """Report a failure; returns whether it opened the breaker."""
        was_open = self.is_open
        self._num_failures += 1
        if self.is_open:
            self._begin_pause()
        return self.is_open and not was_open

    def _begin_pause(self) -> None:
        self._next_trial_s = self._clock() + self._pause_s
