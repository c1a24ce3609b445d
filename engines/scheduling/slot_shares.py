"""Which sequences start first, and which pause for them, where tenants share the slots and the KV.

Of k tenants in the engine each is entitled to a k-th of the slots and of the KV. What one does not use is anybody's,
until it wants it: then a sequence pauses that another tenant has beyond its own share. Looks at what is held; changes
nothing.

Example: of 32 slots one tenant has all, and another sends twenty requests. Sixteen of them are entitled; for each, one
of the first tenant's sequences pauses. The last four wait like everybody else, and so do the paused ones.
"""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from engines.scheduling.kv_budget import KvBudget
from engines.sequence import Sequence, SequenceStatus

MIN_PROGRESS_TOKENS = 32
"""What a sequence that was paused generates at least before it is paused again: about a second of a full batch."""


@dataclass(slots=True)
class Holding:
    """What a tenant has running."""

    num_slots: int = 0
    kv_bytes: int = 0

    def add(self, kv_bytes: int) -> None:
        """One sequence more."""
        self.num_slots += 1
        self.kv_bytes += kv_bytes


class SlotShares:
    """As it is at the beginning of a step. Sequences in the background count for nobody."""

    def __init__(self, running: Iterable[Sequence], waiting: Iterable[Sequence], num_slots: int, kv: KvBudget) -> None:
        self._kv = kv
        self._running = [sequence for sequence in running if not sequence.in_background]
        self._waiting = [sequence for sequence in waiting if not sequence.in_background]
        tenants = {sequence.tenant for sequence in (*self._running, *self._waiting)}
        self._at_prompts = {one.tenant for one in self._running if one.status is SequenceStatus.PREFILLING}
        self._is_shared = len(tenants) > 1
        self._share = Holding(max(1, num_slots // max(1, len(tenants))), kv.capacity_bytes // max(1, len(tenants)))

    def entitled(self) -> list[Sequence]:
        """Waiting sequences that their tenants' shares have room for; none where there is one tenant. Those of tenants
        that have a prompt to compute come last.

        Only those of the highest priority that waits. None passes an earlier one of its own tenant that has its
        priority or that began, whatever priority that has: it would never go on otherwise. A tenant that runs nothing
        is entitled to one sequence of any size, which could wait for ever for its KV otherwise.
        """
        if not self._is_shared or not self._waiting:
            return []
        highest = max(sequence.priority for sequence in self._waiting)
        held, found, full = self._held(), [], set()
        for sequence in self._waiting:
            if sequence.priority < highest:
                if sequence.admitted_s is not None:  # it began before those of its tenant that follow
                    full.add(sequence.tenant)
                continue
            if sequence.tenant in full:
                continue
            own = held[sequence.tenant]
            more_bytes = self._kv.needed_bytes(sequence.path, sequence.num_tokens)
            if own.num_slots and not self._has_room(own, more_bytes):
                full.add(sequence.tenant)
                continue
            own.add(more_bytes)
            found.append(sequence)
        return sorted(found, key=lambda one: one.tenant in self._at_prompts) if self._at_prompts else found

    def to_pause(self, wanted: Sequence, *, lacks_slot: bool) -> Sequence | None:
        """What pauses for an entitled sequence that lacks a slot, else KV: of the tenant furthest above its share of
        that, the sequence of the lowest priority, the newest of these.

        None where nobody has one to give; for more KV than a share, which pausing might never free; and while another
        prompt of that tenant is computed: beside streams of others that takes steps, and this one would come after it.
        """
        if wanted.tenant in self._at_prompts:
            return None
        if not self._kv.can_hold(wanted, wanted.num_tokens) and not self._has_kv(wanted):
            return None
        candidates = [one for one in self._running if one.priority <= wanted.priority and _may_pause(one)]
        return self._newest_beyond(candidates, by_slots=lacks_slot)

    def to_replace(self, entitled: Many[Sequence]) -> tuple[Sequence, Sequence] | None:
        """The first of these that can take the place of another, which pauses, and that one: of a tenant above its
        share of slots, else of KV, with at least as much KV. It takes nothing then that an earlier one waits for.
        """
        slots, kv = self._excess(by_slots=True), self._excess(by_slots=False)
        held = self._kv.held_bytes
        beyond = [one for one in self._running if max(slots[one.tenant], kv[one.tenant]) > 0 and _may_pause(one)]
        most_bytes = max((held[one.id] for one in beyond), default=-1)
        for wanted in entitled:
            needed = self._kv.needed_bytes(wanted.path, wanted.num_tokens)
            if needed > most_bytes or wanted.tenant in self._at_prompts:
                continue
            candidates = [one for one in beyond if one.priority <= wanted.priority and held[one.id] >= needed]
            if candidates:
                beyond_most = min(
                    reversed(candidates), key=lambda one: (-slots[one.tenant], -kv[one.tenant], *_leaves_first(one))
                )
                return wanted, beyond_most
        return None

    def to_preempt(self) -> Sequence | None:
        """What gives its KV up where a running sequence needs more and there is none: nothing (None) if nobody has
        more than its share."""
        return self._newest_beyond(self._running, by_slots=False) if self._is_shared else None

    def _newest_beyond(self, candidates: Many[Sequence], *, by_slots: bool) -> Sequence | None:
        excess = self._excess(by_slots=by_slots)
        beyond = [one for one in reversed(candidates) if excess[one.tenant] > 0]
        return min(beyond, key=lambda one: (-excess[one.tenant], *_leaves_first(one)), default=None)

    def _excess(self, *, by_slots: bool) -> dict[str, int]:
        """How much each tenant has beyond its share: 0 or less for one with a single sequence, which it keeps."""
        share, found = self._share, {}
        for tenant, own in self._held().items():
            beyond = own.num_slots - share.num_slots if by_slots else own.kv_bytes - share.kv_bytes
            found[tenant] = beyond if own.num_slots > 1 else 0
        return found

    def _has_kv(self, sequence: Sequence) -> bool:
        more_bytes = self._kv.needed_bytes(sequence.path, sequence.num_tokens)
        return self._held()[sequence.tenant].kv_bytes + more_bytes <= self._share.kv_bytes

    def _has_room(self, own: Holding, more_bytes: int) -> bool:
        return own.num_slots < self._share.num_slots and own.kv_bytes + more_bytes <= self._share.kv_bytes

    def _held(self) -> defaultdict[str, Holding]:
        held: defaultdict[str, Holding] = defaultdict(Holding)
        for sequence in self._running:
            held[sequence.tenant].add(self._kv.held_bytes[sequence.id])
        return held


def _may_pause(sequence: Sequence) -> bool:
    return sequence.paused_at is None or sequence.num_tokens - sequence.paused_at >= MIN_PROGRESS_TOKENS


def _leaves_first(sequence: Sequence) -> tuple[int, float]:
    """Of one tenant's sequences the lowest of these: that of the lowest priority, the newest of several."""
    return sequence.priority, -sequence.queued_s
