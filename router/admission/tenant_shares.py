"""Whether a tenant may start a request although others have all that the engine may run: where it has less than its
equal share of that, and another one more, the engine pauses what is too much (`engines/scheduling/slot_shares.py`).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from router.admission.ticket import Bounds, Load, Ticket
from router.decision import Priority

_CLASSES = tuple(Priority)
Tenant = str | None


class TenantShares:
    """What each tenant has started, by priority; paused or not, it counts until it ends."""

    def __init__(self) -> None:
        self._loads: dict[Tenant, dict[Priority, Load]] = {}
        self._totals: dict[Tenant, Load] = {}

    def add(self, ticket: Ticket) -> None:
        self._loads.setdefault(ticket.tenant, {}).setdefault(ticket.priority, Load()).add(ticket)
        self._totals.setdefault(ticket.tenant, Load()).add(ticket)

    def take(self, ticket: Ticket) -> None:
        loads = self._loads[ticket.tenant]
        loads[ticket.priority].take(ticket)
        self._totals[ticket.tenant].take(ticket)
        if not loads[ticket.priority].num_sequences:
            del loads[ticket.priority]
        if not loads:
            del self._loads[ticket.tenant], self._totals[ticket.tenant]

    def count(self, waiting: Set[Tenant], bounds: Bounds) -> "Shares":
        """As it is now, until the next ticket comes or goes. `waiting` are the tenants with requests in the queue or
        about to enter it.
        """
        num_tenants = max(1, len(self._totals.keys() | waiting))
        share = Load(max(1, bounds.max_running // num_tenants), bounds.max_running_tokens // num_tenants)
        beyond = [(self._lowest(tenant), tenant) for tenant, load in self._totals.items() if _exceeds(load, share)]
        beyond.sort(key=lambda one: one[0], reverse=True)
        return Shares(share=share, started=self._totals, beyond=beyond[:2], num_slots=bounds.max_running)

    def _lowest(self, tenant: Tenant) -> int:
        return max(map(_CLASSES.index, self._loads[tenant]))


@dataclass(slots=True, kw_only=True, frozen=True)
class Shares:
    """An equal share, what each tenant has started, and the two with the lowest priorities of those that have more,
    lowest first: one of any two is another tenant's.
    """

    share: Load
    started: Mapping[Tenant, Load]
    beyond: Sequence[tuple[int, Tenant]]
    num_slots: int

    def have_room(self, ticket: Ticket) -> bool:
        """Whether its tenant's share has room for it, and another one that would pause for it has more than its own.

        A tenant that has started nothing has room for one request of any size, if no more tenants have started any than
        there are slots: beyond that a share is less than a slot, and the queue decides whose turn it is.
        """
        started = self.started.get(ticket.tenant)
        if started is None and len(self.started) >= self.num_slots:
            return False
        if started is not None:
            with_it = Load(started.num_sequences, started.num_tokens)
            with_it.add(ticket)
            if _exceeds(with_it, self.share):
                return False
        rank = _CLASSES.index(ticket.priority)
        return any(lowest >= rank and tenant != ticket.tenant for lowest, tenant in self.beyond)


def _exceeds(load: Load, share: Load) -> bool:
    return load.num_sequences > share.num_sequences or load.num_tokens > share.num_tokens
