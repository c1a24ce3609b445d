"""Whose turn it is: tenants by the tokens they have used, a tenant's own entries by deadline."""

from dataclasses import dataclass, field
from itertools import count

from router.admission.fair_queue import FairQueue

_orders = count()


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    tenant: str | None
    cost_tokens: int = 10
    deadline_s: float = 100.0
    order: int = field(default_factory=lambda: next(_orders))


def drained(queue: FairQueue[Entry]) -> str:
    return "".join(str(queue.pop().tenant) for _ in range(len(queue)))


def push(queue: FairQueue[Entry], tenants: str, cost_tokens: int = 10) -> None:
    for tenant in tenants:
        queue.push(Entry(tenant=tenant, cost_tokens=cost_tokens))


def test_tenants_take_turns_whoever_came_first_or_sent_more() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "aaaaabb")
    assert drained(queue) == "ababaaa"


def test_turns_go_by_tokens_not_by_requests() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "aaa", cost_tokens=40)
    push(queue, "bbbbbb", cost_tokens=20)
    assert drained(queue) == "abbabbabb"


def test_own_entries_go_by_deadline_then_by_arrival() -> None:
    queue: FairQueue[Entry] = FairQueue()
    entries = [Entry(tenant=None, deadline_s=deadline_s) for deadline_s in (9.0, 5.0, 9.0, 1.0)]
    for entry in entries:
        queue.push(entry)
    assert [queue.pop() for _ in entries] == [entries[3], entries[1], entries[0], entries[2]]


def test_time_away_earns_nothing() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "b")
    push(queue, "a" * 50)
    for _ in range(40):
        queue.pop()
    push(queue, "bbb")
    assert drained(queue)[:6] in ("bababa", "ababab")


def test_refund_brings_the_next_turn_forward() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "aa", cost_tokens=1000)
    push(queue, "bbb", cost_tokens=100)
    assert queue.pop().tenant == "a"
    queue.settle("a", -950)
    assert drained(queue) == "babb"
    queue.settle("nobody", -5)


def test_what_entries_cost_beyond_their_charge_puts_their_tenant_behind() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "aa")
    push(queue, "bbbb")
    assert queue.pop().tenant == "a"
    queue.settle("a", 20)  # three times what it was charged
    assert drained(queue) == "bbbab"


def test_tenant_without_entries_is_charged_too() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "bb")
    queue.pop()
    queue.settle("a", 25)
    push(queue, "ab")
    assert drained(queue) == "bba"


def test_removed_entry_is_never_popped_and_costs_nothing() -> None:
    queue: FairQueue[Entry] = FairQueue()
    entry = Entry(tenant="a")
    queue.push(entry)
    push(queue, "b")
    queue.remove(entry)
    assert (len(queue), queue.num_tenants, dict(queue.tokens_by_tenant())) == (1, 1, {"b": 10})
    head = queue.peek()
    assert head is not None
    assert head.tenant == "b"


def test_idle_time_settles_what_tenants_had() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "a", cost_tokens=1000)
    queue.pop()
    queue.forget()
    assert queue.peek() is None
    push(queue, "ab")
    assert drained(queue) == "ab"


def test_entry_taken_before_its_turn_is_charged_and_leaves_the_others_their_order() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "aa")
    push(queue, "b", cost_tokens=25)
    queue.pop()
    push(queue, "b")
    assert [entry.tenant for entry in queue.heads()] == ["b", "a"]
    queue.take(queue.heads()[1])
    push(queue, "c")
    assert drained(queue) == "bcb"
