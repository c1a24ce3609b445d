"""Checks an engine's bookkeeping: sequences, slots, KV bytes, cached prefixes. Runs on the engine's own thread."""

from collections.abc import Iterator, Set

from engines.scheduling.kv_budget import KvBudget
from engines.scheduling.prefix_cache import PrefixCache
from engines.scheduling.scheduler import Scheduler
from engines.sequence import SequenceStatus

RUNNING = (SequenceStatus.PREFILLING, SequenceStatus.DECODING)


def find_inconsistencies(scheduler: Scheduler, kv: KvBudget, cache: PrefixCache, living: Set[str]) -> list[str]:
    """What is inconsistent between two steps, as sentences; empty when nothing is.

    `living` are the ids of the sequences that the engine has accepted and not ended.
    """
    return [
        *_sequence_problems(scheduler, living),
        *_kv_problems(scheduler, kv),
        *_cache_problems(scheduler, cache),
    ]


def _sequence_problems(scheduler: Scheduler, living: Set[str]) -> Iterator[str]:
    known = {sequence.id for sequence in (*scheduler.running, *scheduler.waiting)}
    if known - living:
        yield f"the scheduler has sequences that have ended: {sorted(known - living)}"
    for sequence in scheduler.running:
        if sequence.slot is None or scheduler.occupant(sequence.slot) is not sequence:
            yield f"sequence {sequence.id} is not in its slot {sequence.slot}"
        if sequence.status not in RUNNING:
            yield f"sequence {sequence.id} runs and is {sequence.status.value}"
    for sequence in scheduler.waiting:
        if sequence.slot is not None or sequence.status is not SequenceStatus.WAITING:
            yield f"sequence {sequence.id} waits, is {sequence.status.value} and has slot {sequence.slot}"
    if scheduler.num_used_slots != len(scheduler.running):
        yield f"{scheduler.num_used_slots} slots are taken by {len(scheduler.running)} sequences"


def _kv_problems(scheduler: Scheduler, kv: KvBudget) -> Iterator[str]:
    held = kv.held_bytes
    if kv.used_bytes != sum(held.values()):
        yield f"{kv.used_bytes} bytes of KV are counted, {sum(held.values())} are held"
    if kv.used_bytes > kv.capacity_bytes:
        yield f"{kv.used_bytes} bytes of KV exceed {kv.capacity_bytes}"
    running = {sequence.id for sequence in scheduler.running}
    if held.keys() != running:
        yield f"KV is held by {sorted(held)}, and {sorted(running)} run"


def _cache_problems(scheduler: Scheduler, cache: PrefixCache) -> Iterator[str]:
    stored, num_holders = cache.count_held()
    if stored != cache.used_bytes:
        yield f"{cache.used_bytes} bytes of cached prefixes are counted, {stored} are stored"
    num_held = sum(len(sequence.match.keys) for sequence in (*scheduler.running, *scheduler.waiting))
    if num_holders != num_held:
        yield f"cached blocks have {num_holders} holders, sequences hold {num_held}"
