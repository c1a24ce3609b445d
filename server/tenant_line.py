"""Whose work is next: tenants in turn, a bounded number of each, and never all places for one of several."""

from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

from models.errors import QueueFull, Unavailable

Job = TypeVar("Job")


class TenantLine(Generic[Job]):
    """Holds no clock and starts nothing. `what_waits` (`schemas wait to be compiled`) and `retry_after_s` are what it
    tells those whom it turns away.

    Where there are tenants none gets the last place: whatever its jobs cost, another tenant's can begin.
    """

    def __init__(
        self,
        num_places: int,
        *,
        what_waits: str,
        retry_after_s: float,
        max_waiting: int = 64,
        max_waiting_of_tenant: int = 8,
    ) -> None:
        self._num_places = num_places
        self._what_waits = what_waits
        self._retry_after_s = retry_after_s
        self._max_waiting = max_waiting
        self._max_waiting_of_tenant = max_waiting_of_tenant
        self._waiting: OrderedDict[str | None, deque[Job]] = OrderedDict()
        self._running: Counter[str | None] = Counter()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def push(self, tenant: str | None, job: Job) -> None:
        """Raises: QueueFull for a tenant that has enough of them already, Unavailable when all have."""
        own = self._waiting.get(tenant, ())
        if len(own) >= self._max_waiting_of_tenant:
            raise QueueFull(
                f"{len(own)} of your {self._what_waits} already; try again later",
                retry_after_s=self._retry_after_s,
            )
        if self.num_waiting >= self._max_waiting:
            raise Unavailable(
                f"{self._max_waiting} {self._what_waits}; try again later", retry_after_s=self._retry_after_s
            )
        self._waiting.setdefault(tenant, deque()).append(job)

    def pop(self) -> Job | None:
        """The job whose turn it is, if there is a place for it; `release` gives the place back."""
        if self._running.total() >= self._num_places:
            return None
        tenant = next((one for one in self._waiting if self._has_place(one)), None)
        queue = self._waiting.get(tenant)
        if queue is None or not self._has_place(tenant):
            return None
        job = queue.popleft()
        self._running[tenant] += 1
        del self._waiting[tenant]
        if queue:
            self._waiting[tenant] = queue  # behind all others
        return job

    def release(self, tenant: str | None) -> None:
        self._running[tenant] -= 1
        self._running += Counter()  # forgets tenants with nothing

    def remove(self, tenant: str | None, job: Job) -> None:
        """Take out a job that waits."""
        queue = self._waiting[tenant]
        queue.remove(job)
        if not queue:
            del self._waiting[tenant]

    def _has_place(self, tenant: str | None) -> bool:
        """Without tenants nobody else could take the last place."""
        return tenant is None or self._running[tenant] < max(1, self._num_places - 1)
