"""Slots stay sorted by depth under any sequence of arrivals and departures, and the returned moves are complete."""

import random

import pytest

from engines.scheduling.slots import Move, SlotMap


def contents(slots: SlotMap[str], num_slots: int) -> list[str | None]:
    return [slots.occupant(slot) for slot in range(num_slots)]


def apply(memory: list[str | None], moves: list[Move]) -> None:
    """What a runner does: copy from slot to slot, one after the other."""
    for move in moves:
        assert memory[move.target] is None or memory[move.target] != memory[move.source]
        memory[move.target], memory[move.source] = memory[move.source], None


def test_slots_of_one_depth_fill_from_the_front() -> None:
    slots: SlotMap[str] = SlotMap(3)
    assert [slots.allocate(name, 0) for name in "abc"] == [(0, []), (1, []), (2, [])]
    assert not slots.has_room


def test_slots_reuse_a_hole_of_the_same_depth_without_moves() -> None:
    slots: SlotMap[str] = SlotMap(4)
    for name in "abc":
        slots.allocate(name, 0)
    slots.free(1)
    assert slots.allocate("d", 0) == (1, [])


def test_slots_put_a_deeper_arrival_before_shallower_ones() -> None:
    slots: SlotMap[str] = SlotMap(4)
    slots.allocate("shallow", 2)
    slots.allocate("middle", 1)
    slot, moves = slots.allocate("deep", 0)
    assert contents(slots, 4) == ["deep", "middle", "shallow", None]
    assert slot == 0
    assert moves


def test_slots_compact_only_past_the_share_of_holes() -> None:
    slots: SlotMap[str] = SlotMap(16)
    for index in range(16):
        slots.allocate(str(index), 0)
    slots.free(3)
    assert slots.compact() == []
    for slot in (4, 5):
        slots.free(slot)
    assert len(slots.compact()) == 3
    assert slots.end == 13


@pytest.mark.parametrize("seed", range(40))
def test_slots_keep_depth_order_and_truth_under_random_operations(seed: int) -> None:
    rng = random.Random(seed)
    num_slots = rng.randint(1, 12)
    slots: SlotMap[str] = SlotMap(num_slots)
    memory: list[str | None] = [None] * num_slots
    depths: dict[str, int] = {}
    for turn in range(200):
        if slots.has_room and rng.random() < 0.55:
            name, depth = f"s{turn}", rng.randrange(3)
            slot, moves = slots.allocate(name, depth)
            apply(memory, moves)
            assert memory[slot] is None
            memory[slot] = name
            depths[name] = depth
        elif depths:
            name = rng.choice(sorted(depths))
            slots.free(memory.index(name))
            memory[memory.index(name)] = None
            del depths[name]
        if rng.random() < 0.3:
            apply(memory, slots.compact())
        assert contents(slots, num_slots) == memory
        order = [depths[name] for name in memory if name is not None]
        assert order == sorted(order)
        assert slots.num_used == len(depths)
