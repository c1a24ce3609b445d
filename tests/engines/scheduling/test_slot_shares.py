"""Tenants' shares of slots and KV: who starts, who pauses for it, and who never does."""

from typing import Any

import pytest

from engines.scheduling.slot_shares import MIN_PROGRESS_TOKENS
from engines.sequence import Sequence
from tests.engines.scheduling.test_scheduler import BLOCK_BYTES, Rig, make_sequence, step_until


def sequences(tenant: str, num: int, num_tokens: int = 4, **fields: Any) -> list[Sequence]:
    return [make_sequence(f"{tenant}{number}", num_tokens, tenant=tenant, **fields) for number in range(num)]


def full_rig(max_running: int = 8) -> Rig:
    """Tenant `a` has every slot, and as many sequences wait."""
    rig = Rig(max_running=max_running, busy_step_tokens=64)
    rig.add(*sequences("a", 2 * max_running))
    rig.step()
    assert num_running(rig, "a") == max_running
    return rig


def num_running(rig: Rig, tenant: str) -> int:
    return sum(sequence.tenant == tenant for sequence in rig.scheduler.running)


def test_tenant_that_has_nothing_runs_in_the_next_step() -> None:
    rig, wanted = full_rig(), make_sequence("wanted", tenant="b")
    rig.add(wanted)
    plan = rig.step()
    assert wanted.slot is not None
    assert [paused.sequence.id for paused in plan.paused] == ["a7"]
    assert (rig.scheduler.num_pauses, rig.scheduler.num_preemptions) == (1, 0)


def test_tenant_gets_its_equal_share_one_sequence_a_step_and_no_more() -> None:
    rig = full_rig()
    rig.add(*sequences("b", 8))
    assert [len(rig.step().paused) for _ in range(6)] == [1, 1, 1, 1, 0, 0]
    assert (num_running(rig, "a"), num_running(rig, "b")) == (4, 4)
    for _ in range(100):
        rig.step()
    assert (num_running(rig, "a"), num_running(rig, "b"), rig.scheduler.num_pauses) == (4, 4, 4)


def test_nobody_pauses_for_a_tenant_while_its_last_prompt_is_computed() -> None:
    """Beside the streams of `a` a prompt of twelve tokens takes three steps; `c` need not wait for that of `b`."""
    rig = full_rig()
    rig.add(*sequences("b", 2, num_tokens=12), make_sequence("c", 4, tenant="c"))
    assert [len(rig.step().paused) for _ in range(6)] == [1, 1, 0, 1, 0, 0]
    assert [num_running(rig, tenant) for tenant in "abc"] == [5, 2, 1]


def test_nobody_pauses_where_there_is_one_tenant() -> None:
    rig = full_rig()
    rig.add(make_sequence("high", tenant="a", priority=1))
    for _ in range(100):
        rig.step()
    assert (rig.scheduler.num_pauses, num_running(rig, "a")) == (0, 8)
    assert [sequence.id for sequence in rig.scheduler.running] == [f"a{number}" for number in range(8)]


def test_nobody_pauses_while_a_slot_is_free() -> None:
    rig = Rig(max_running=8)
    rig.add(*sequences("a", 7))
    rig.step()
    rig.add(make_sequence("wanted", tenant="b"))
    rig.step()
    assert (rig.scheduler.num_pauses, len(rig.scheduler.running)) == (0, 8)


def test_who_has_no_more_than_its_share_keeps_it() -> None:
    """Of three tenants' eight slots two belong to each; `a` has five, and gives three."""
    rig = Rig(max_running=8, busy_step_tokens=64)
    rig.add(*sequences("b", 2), *sequences("a", 6))
    rig.step()
    rig.add(*sequences("c", 8))
    for _ in range(100):
        rig.step()
    assert [num_running(rig, tenant) for tenant in "abc"] == [4, 2, 2]


def test_more_tenants_than_slots_take_turns_and_pause_nobody() -> None:
    rig = Rig(max_running=2)
    rig.add(*(make_sequence(tenant, tenant=tenant) for tenant in "abcde"))
    for _ in range(50):
        rig.step()
    assert rig.scheduler.num_pauses == 0
    assert [sequence.id for sequence in rig.scheduler.running] == ["a", "b"]


def test_paused_one_goes_on_before_its_tenants_new_ones() -> None:
    rig, wanted = full_rig(), make_sequence("wanted", tenant="b")
    rig.add(wanted)
    rig.step()
    (paused,) = [sequence for sequence in rig.scheduler.waiting if sequence.paused_at is not None]
    kept = list(paused.token_ids)
    rig.scheduler.remove(wanted)
    rig.step()
    assert paused.slot is not None
    assert paused.token_ids[: len(kept)] == kept


def test_who_was_paused_makes_progress_before_it_pauses_again() -> None:
    rig = Rig(max_running=2, busy_step_tokens=64)
    rig.add(*sequences("a", 2))
    rig.step()
    for number in range(2):
        rig.add(make_sequence(f"wanted{number}", tenant="b"))
        rig.step()
        rig.scheduler.remove(next(one for one in rig.scheduler.running if one.tenant == "b"))
        rig.step()
    assert rig.scheduler.num_pauses == 2
    wanted = make_sequence("wanted", tenant="b")
    rig.add(wanted)
    lengths = {one.id: one.paused_at for one in rig.scheduler.running}
    step_until(rig, lambda: wanted.slot is not None)
    (paused,) = (one for one in rig.scheduler.waiting if one.tenant == "a")
    before = lengths[paused.id]
    assert before is not None
    assert paused.num_tokens == paused.paused_at == before + MIN_PROGRESS_TOKENS
    assert rig.scheduler.num_pauses == 3


@pytest.mark.parametrize(("running", "wanted", "num_pauses"), [(1, 0, 0), (0, 0, 1), (0, 1, 1), (-1, 0, 1), (0, -1, 0)])
def test_nobody_pauses_for_a_lower_priority(running: int, wanted: int, num_pauses: int) -> None:
    rig = Rig(max_running=2, busy_step_tokens=64)
    rig.add(*sequences("a", 2, priority=running))
    rig.step()
    rig.add(make_sequence("wanted", tenant="b", priority=wanted))
    for _ in range(100):
        rig.step()
    assert rig.scheduler.num_pauses == num_pauses


def test_lowest_priority_pauses_first() -> None:
    rig = Rig(max_running=3, busy_step_tokens=64)
    rig.add(make_sequence("low", tenant="a", priority=-1), *sequences("a", 2))
    rig.step()
    rig.add(make_sequence("wanted", tenant="b"))
    assert [paused.sequence.id for paused in rig.step().paused] == ["low"]


def test_low_one_does_not_pass_others_that_wait() -> None:
    rig = full_rig(max_running=2)
    rig.add(make_sequence("low", tenant="b", priority=-1))
    rig.scheduler.remove(rig.scheduler.running[0])
    rig.step()
    assert num_running(rig, "b") == 0


def test_paused_one_of_a_lower_priority_goes_on_before_its_tenants_new_ones() -> None:
    """Both tenants always have another request, of a higher priority, and sequences end all the time."""
    rig = Rig(max_running=4, busy_step_tokens=64)
    low = make_sequence("low", tenant="a", priority=-1)
    rig.add(*sequences("a", 3), low)
    rig.step()
    rig.add(*sequences("b", 2))
    step_until(rig, lambda: num_running(rig, "b") == 2)
    assert low.paused_at is not None
    for number in range(20):
        for tenant in "ab":
            rig.add(make_sequence(f"{tenant}-{number}", 4, tenant=tenant))
            rig.scheduler.remove(next(one for one in rig.scheduler.running if one.tenant == tenant))
            rig.step()
            if low.slot is not None:
                return
    pytest.fail("it never went on")


def test_share_of_kv_is_given_like_slots() -> None:
    """Slots are free; `a` has all of the KV, of which half belongs to `b`."""
    rig = Rig(max_running=8, busy_step_tokens=64, kv_bytes=8 * BLOCK_BYTES)
    rig.add(*sequences("a", 8, num_tokens=10))
    rig.step()
    wanted = sequences("b", 8, num_tokens=20)
    rig.add(*wanted)
    step_until(rig, lambda: num_running(rig, "b") == 2)
    assert rig.scheduler.num_pauses > 0
    assert [one.id for one in wanted if one.slot is not None] == ["b0", "b1"]


def test_growth_of_who_has_more_than_its_share_of_kv_costs_nobody_else() -> None:
    rig = Rig(max_running=8, busy_step_tokens=64, kv_bytes=8 * BLOCK_BYTES)
    rig.add(*sequences("a", 7, num_tokens=10))
    rig.step()
    small = make_sequence("small", 4, tenant="b")
    rig.add(small)
    rig.step()
    step_until(rig, lambda: rig.scheduler.num_preemptions > 0)
    assert small.slot is not None


def test_nobody_pauses_for_more_kv_than_a_share() -> None:
    rig = Rig(max_running=8, busy_step_tokens=64, kv_bytes=8 * BLOCK_BYTES)
    rig.add(*sequences("a", 8, num_tokens=4))
    rig.step()
    rig.add(make_sequence("large", 100, tenant="b"))
    for _ in range(10):
        rig.step()
    assert (rig.scheduler.num_pauses, num_running(rig, "a")) == (0, 8)


def test_only_sequence_of_a_tenant_stays_however_large() -> None:
    rig = Rig(max_running=8, busy_step_tokens=64, kv_bytes=8 * BLOCK_BYTES)
    large = make_sequence("large", 100, tenant="a")
    rig.add(large)
    rig.step()
    rig.add(make_sequence("wanted", 40, tenant="b"))
    for _ in range(10):
        rig.step()
    assert (rig.scheduler.num_pauses, large.slot is None) == (0, False)


def test_large_one_is_not_starved_by_small_ones_of_others() -> None:
    rig = Rig(max_running=8, busy_step_tokens=64, kv_bytes=8 * BLOCK_BYTES)
    rig.add(*sequences("a", 4))
    rig.step()
    large = make_sequence("large", 100, tenant="b")
    rig.add(large)
    for number in range(40):
        rig.add(make_sequence(f"c{number}", 4, tenant="c"))
        rig.step()
        done = [one for one in rig.scheduler.running if one is not large and one.num_completion_tokens > 10]
        for one in done:
            rig.scheduler.remove(one)
        if large.slot is not None:
            return
    pytest.fail("it never ran")


@pytest.mark.parametrize("num_slots", [8, 16])
def test_large_one_does_not_keep_other_tenants_from_their_shares(num_slots: int) -> None:
    """Nothing pauses for the large one of `c`, and it waits for KV; with sixteen slots there are free ones."""
    rig = Rig(max_running=num_slots, busy_step_tokens=64, kv_bytes=64 * BLOCK_BYTES)
    rig.add(*sequences("a", 8))
    rig.step()
    large = make_sequence("large", 900, tenant="c", max_tokens=1)
    rig.add(large, *sequences("b", 8))
    paused = [len(rig.step().paused) for _ in range(4)]
    assert (large.slot, num_running(rig, "a") + num_running(rig, "b")) == (None, 8)
    assert num_running(rig, "b") == rig.scheduler.num_pauses == sum(paused) > 0
    for sequence in list(rig.scheduler.running):
        rig.scheduler.remove(sequence)
    rig.step()
    assert large.slot is not None


def test_nothing_pauses_for_one_behind_a_large_one_that_would_take_more_kv_than_that_gives() -> None:
    rig = Rig(max_running=8, busy_step_tokens=64, kv_bytes=64 * BLOCK_BYTES)
    rig.add(*sequences("a", 8))
    rig.step()
    rig.add(make_sequence("large", 900, tenant="c"), make_sequence("b", 40, tenant="b"))
    rig.step()
    assert (rig.scheduler.num_pauses, num_running(rig, "b")) == (0, 0)


def test_sequence_that_waits_for_modules_pauses_nobody() -> None:
    rig = full_rig()
    rig.loaded = {"short"}
    rig.add(make_sequence("wanted", tenant="b"))
    rig.step()
    assert rig.scheduler.num_pauses == 0


@pytest.mark.parametrize(("tenants", "num_asked"), [("a", 0), ("ab", 1), ("abc", 1)])
def test_full_engine_asks_once_a_step_what_a_path_may_run_and_never_for_one_tenant(
    tenants: str, num_asked: int
) -> None:
    """Asking takes as long as planning a whole step."""
    rig = full_rig()
    for tenant in tenants:
        rig.add(*(make_sequence(f"w{tenant}{number}", 4, tenant=tenant) for number in range(30)))
    for _ in range(40):
        rig.step()
    rig.asked.clear()
    rig.step()
    assert rig.asked == ["full"] * num_asked


def test_modules_that_come_are_seen_in_the_next_step() -> None:
    rig = full_rig()
    rig.loaded = {"short"}
    wanted = make_sequence("wanted", tenant="b")
    rig.add(wanted)
    rig.step()
    rig.loaded.add("full")
    rig.step()
    assert wanted.slot is not None
