"""Whether a tenant may start a request although others have all that the engine may run: where it has less than its
equal share of that, and another one more, the engine pauses what is too much (`engines/scheduling/slot_shares.py`).
"""

from collections.abc import Set

from router.admission.ticket import Bounds, Load, Ticket
from router.decision import Priority

_CLASSES = tuple(Priority)
Tenant = str | None


class TenantShares:
    """What each tenant has started, by priority; paused or not, it counts until it ends."""

    def __init__(self) -> None:
        self._loads: dict[Tenant, dict[Priority, Load]] = {}

    def add(self, ticket: Ticket) -> None:
        self._loads.setdefault(ticket.tenant, {}).setdefault(ticket.priority, Load()).add(ticket)

    def take(self, ticket: Ticket) -> None:
        loads = self._loads[ticket.tenant]
        loads[ticket.priority].take(ticket)
        if not loads[ticket.priority].num_sequences:
            del loads[ticket.priority]
        if not loads:
            del self._loads[ticket.tenant]

    def have_room(self, ticket: Ticket, waiting: Set[Tenant], bounds: Bounds) -> bool:
        """Whether its tenant's share has room for it, and another one that would pause for it has more than its own.
        `waiting` are the tenants with requests in the queue.

        A tenant that has started nothing has room for one request of any size.
        """
        num_tenants = len(self._loads.keys() | waiting | {ticket.tenant})
        if num_tenants < 2:
            return False
        share = Load(max(1, bounds.max_running // num_tenants), bounds.max_running_tokens // num_tenants)
        with_it = self._load_of(ticket.tenant)
        is_first = not with_it.num_sequences
        with_it.add(ticket)
        if _exceeds(with_it, share) and not is_first:
            return False
        return any(
            _exceeds(self._load_of(other), share) and self._has_as_low(other, ticket.priority)
            for other in self._loads
            if other != ticket.tenant
        )

    def _load_of(self, tenant: Tenant) -> Load:
        loads = self._loads.get(tenant, {}).values()
        return Load(sum(load.num_sequences for load in loads), sum(load.num_tokens for load in loads))

    def _has_as_low(self, tenant: Tenant, priority: Priority) -> bool:
        lowest = max(map(_CLASSES.index, self._loads[tenant]))
        return lowest >= _CLASSES.index(priority)


def _exceeds(load: Load, share: Load) -> bool:
    return load.num_sequences > share.num_sequences or load.num_tokens > share.num_tokens
