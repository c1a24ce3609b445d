"""Which depth runs the next step: deficit round robin, so that every depth gets the same share of the time.

A step of a shallow path costs less, so it gets more of them: a quantum is the cost of the deepest path that has work,
and a depth keeps its turn while its credit lasts. So a depth waits at most one quantum for each of the others.

Source: Shreedhar and Varghese, Efficient Fair Queueing Using Deficit Round Robin (SIGCOMM 1995).
"""

from collections import deque
from collections.abc import Collection


class DepthTurns:
    """Depths are counted in layers. Owned by the scheduler."""

    def __init__(self) -> None:
        self._turns: deque[int] = deque()
        self._credit: dict[int, int] = {}

    def choose(self, depths: Collection[int]) -> int:
        """The depth of the next step, of those that have work."""
        self._follow(depths)
        quantum = max(depths)
        while self._credit[self._turns[0]] < self._turns[0]:
            self._turns.rotate(-1)
            self._credit[self._turns[0]] += quantum
        chosen = self._turns[0]
        self._credit[chosen] -= chosen
        return chosen

    def give_up(self, depth: int) -> None:
        """A depth could do nothing in its step, for want of room: the others come first."""
        if self._turns and self._turns[0] == depth:
            self._credit[depth] = 0

    def _follow(self, depths: Collection[int]) -> None:
        """New depths join at the end; those without work lose their place and their credit."""
        for gone in [depth for depth in self._turns if depth not in depths]:
            self._turns.remove(gone)
            del self._credit[gone]
        for depth in sorted(set(depths) - set(self._turns)):
            self._turns.append(depth)
            self._credit[depth] = 0
