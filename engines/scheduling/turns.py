"""Who takes part in a step that tenants share, where their sequences are many or choosing a token costs a lot.

A forward pass of many rows may take several times as long as one of few (`row_pace.py`). Choosing tokens is paid row by
row: filters over the whole vocabulary, a wide schema, many log-probabilities, up to more than the pass itself. So a
tenant beside others has a bounded number of rows in a step and may spend a bounded time on choosing, and its sequences
take turns, those that waited longest first. No token changes: it only comes some steps later. Knows what was measured;
measures nothing itself.
"""

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Many

from engines.scheduling.row_pace import RowPace
from engines.sequence import PLAIN_CHOOSING_S, Sequence, SequenceStatus, mean_with

PASS_SHARE = 0.5
"""Of a forward pass: how long all tenants together may choose tokens per step."""
MAX_KNOWN_TENANTS = 256


class Turns:
    """Owned by the engine's thread. Costs are in seconds."""

    def __init__(self, rows: RowPace) -> None:
        self._rows = rows
        self._pass_s: float | None = None
        self._last_place = 0
        """In the queue. Who comes in a step stands before who has its turn in it."""
        self._credits: dict[str, float] = {}
        self._typical: OrderedDict[str, float] = OrderedDict()
        """What choosing a token last cost each tenant: a sequence has no figure of its own before its first one."""

    def note_pass(self, rows: Many[Sequence], seconds: float) -> None:
        """A forward pass of these rows and no prompt took so long."""
        self._pass_s = mean_with(self._pass_s, seconds)
        self._rows.note_step(len(rows), seconds + sum(row.choosing_s or 0.0 for row in rows))

    def waiting(self, candidates: Many[Sequence], tenants: frozenset[str]) -> frozenset[str]:
        """Ids of the candidates that sit this step out: every candidate would have a token chosen in it. Never all.

        `tenants` are those that have a sequence running.
        """
        self._queue(sequence for sequence in candidates if sequence.waits_from is None)
        waiting = self._waiting_among(candidates, tenants)
        self._queue(sorted((one for one in candidates if one.id not in waiting), key=_waits_from))
        return frozenset(waiting)

    def _queue(self, sequences: Iterable[Sequence]) -> None:
        """Behind all that wait, one after the other."""
        for place, sequence in enumerate(sequences, self._last_place + 1):
            sequence.waits_from = self._last_place = place

    def _waiting_among(self, candidates: Many[Sequence], tenants: frozenset[str]) -> set[str]:
        if len(tenants) < 2 or self._pass_s is None:
            self._credits.clear()
            return set()
        self._credits = {tenant: credit for tenant, credit in self._credits.items() if tenant in tenants}
        budget_s = PASS_SHARE * self._pass_s / len(tenants)
        costs = {one.id: self._cost(one) for one in candidates}
        waiting: set[str] = set()
        for tenant, own in _by_tenant(candidates).items():
            waiting |= self._too_dear(tenant, own, costs, budget_s)
        waiting |= self._beyond_a_pass(candidates, waiting)
        for one in candidates:
            if one.id not in waiting and costs[one.id] > PLAIN_CHOOSING_S:
                self._credits[one.tenant] -= costs[one.id]
        if candidates and len(waiting) == len(candidates):
            waiting.remove(min(candidates, key=_waits_from).id)
        return waiting

    def _too_dear(self, tenant: str, own: list[Sequence], costs: dict[str, float], budget_s: float) -> set[str]:
        """Ids of a tenant's sequences that its time for choosing does not reach in this step."""
        costly = [sequence for sequence in own if costs[sequence.id] > PLAIN_CHOOSING_S]
        dearest_s = max((costs[sequence.id] for sequence in costly), default=0.0)
        left_s = min(self._credits.get(tenant, 0.0) + budget_s, max(budget_s, dearest_s))
        self._credits[tenant] = left_s
        waiting: set[str] = set()
        for sequence in sorted(costly, key=_waits_from):
            cost_s = costs[sequence.id]
            if waiting or cost_s > left_s:  # none passes one that waits: a dear one would wait for ever
                waiting.add(sequence.id)
            else:
                left_s -= cost_s
        return waiting

    def _beyond_a_pass(self, candidates: Many[Sequence], waiting: set[str]) -> set[str]:
        """Ids of the rows that a pass has no room for: tenants give it one each until it is full. Those that are
        `waiting` take no room from others."""
        rows = [one for one in candidates if one.status is SequenceStatus.DECODING]
        most_rows = self._rows.most_rows(rows)
        if most_rows is None:
            return set()
        places: dict[str, int] = {}
        able = [one for one in rows if one.id not in waiting]
        for own in _by_tenant(able).values():
            places |= {one.id: place for place, one in enumerate(sorted(own, key=_waits_from))}
        queue = sorted(able, key=lambda one: (places[one.id], _waits_from(one)))
        return {one.id for one in queue[most_rows:]}

    def _cost(self, sequence: Sequence) -> float:
        tenant = sequence.tenant
        if sequence.choosing_s is None:
            return self._typical.get(tenant, 0.0)
        self._typical[tenant] = sequence.choosing_s
        self._typical.move_to_end(tenant)
        if len(self._typical) > MAX_KNOWN_TENANTS:
            self._typical.popitem(last=False)
        return sequence.choosing_s


def _waits_from(sequence: Sequence) -> int:
    assert sequence.waits_from is not None
    return sequence.waits_from


def _by_tenant(sequences: Iterable[Sequence]) -> dict[str, list[Sequence]]:
    found: dict[str, list[Sequence]] = {}
    for sequence in sequences:
        found.setdefault(sequence.tenant, []).append(sequence)
    return found
