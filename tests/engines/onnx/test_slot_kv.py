"""KV slots: what is written comes back, slots do not touch each other, and memory is held only where it is used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.onnx.sessions import StageKv
from engines.onnx.slot_kv import KEPT_TOKENS, SlotKv


def make(**changes: Any) -> SlotKv:
    sizes: dict[str, Any] = {
        "num_layers": 2,
        "num_slots": 3,
        "num_kv_heads": 2,
        "capacity": 100,
        "head_dim": 8,
        "dtype": "float32",
    }
    return SlotKv(**(sizes | changes))


def random_block(kv: SlotKv, num_tokens: int, seed: int) -> Any:
    num_heads, head_dim = kv.rows(0, 0, slice(None)).shape[1], kv.rows(0, 0, slice(None)).shape[3]
    shape = (kv.num_layers, 2, num_heads, num_tokens, head_dim)
    return np.random.default_rng(seed).standard_normal(shape).astype(kv.dtype)


def assert_gives_back(kv: StageKv, blocks: dict[int, Any]) -> None:
    """Every slot has its block of 20 tokens, from position 10 on, and nothing before and behind it."""
    for slot, block in blocks.items():
        kv.write(slot, 10, block)
    for slot, block in blocks.items():
        np.testing.assert_array_equal(kv.read(slot, 10, 20), block)
        assert not kv.read(slot, 0, 10).any()
        assert not kv.read(slot, 30, 10).any()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_slot_kv_gives_back_what_was_written(dtype: str) -> None:
    kv = make(dtype=dtype)
    blocks = {slot: random_block(kv, 20, slot) for slot in range(3)}
    assert_gives_back(kv, blocks)


def test_slot_kv_read_is_a_copy() -> None:
    kv = make()
    kv.write(0, 0, random_block(kv, 5, 1))
    before = kv.read(0, 0, 5)
    kept = before.copy()
    kv.write(0, 0, random_block(kv, 5, 2))
    np.testing.assert_array_equal(before, kept)


def test_slot_kv_rows_are_views_laid_out_as_the_graphs_read_them() -> None:
    kv = make()
    block = random_block(kv, 4, 3)
    kv.write(1, 7, block)
    for layer in range(2):
        for part in range(2):
            np.testing.assert_array_equal(kv.rows(layer, part, slice(1, 2))[0, :, 7:11], block[layer, part])
    assert kv.rows(0, 0, slice(1, None)).shape[0] == 2
    assert kv.rows(0, 0, slice(1, 2)).flags.c_contiguous


def test_slot_kv_move_copies_a_sequence() -> None:
    kv = make()
    kv.write(2, 0, random_block(kv, 30, 4))
    kv.write(0, 0, random_block(kv, 30, 5))
    kept = kv.read(2, 0, 30)
    kv.move(2, 0, 25)
    np.testing.assert_array_equal(kv.read(0, 0, 25), kept[:, :, :, :25])
    np.testing.assert_array_equal(kv.read(2, 0, 30), kept)


def resident_kib(kv: SlotKv) -> int:
    """Memory behind the buffer, as the system counts it."""
    address = kv.rows(0, 0, slice(None)).ctypes.data
    lines = Path("/proc/self/smaps").read_text().splitlines()
    is_ours = False
    for line in lines:
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(part, 16) for part in head.split("-"))
            is_ours = start <= address < end
        elif is_ours and head == "Rss:":
            return int(line.split()[1])
    pytest.skip("the mapping is not in /proc/self/smaps")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="/proc/self/smaps is Linux's")
def test_slot_kv_takes_memory_as_it_is_written_and_gives_it_back() -> None:
    kv = make(num_layers=4, num_slots=8, capacity=4096, head_dim=64)
    tokens_kib = 4 * 2 * 2 * 64 * 4 / 1024
    assert resident_kib(kv) < 100
    kv.write(3, 0, random_block(kv, 16, 1))
    assert resident_kib(kv) < 2 * 16 * tokens_kib
    kv.write(3, 0, random_block(kv, 2000, 1))
    kv.write(4, 0, random_block(kv, 100, 2))
    kept, start = kv.read(4, 0, 100), kv.read(3, 0, KEPT_TOKENS)
    assert resident_kib(kv) > 2000 * tokens_kib
    kv.release(3, 2000)
    assert resident_kib(kv) < (KEPT_TOKENS + 100 + 64) * tokens_kib
    np.testing.assert_array_equal(kv.read(4, 0, 100), kept)
    np.testing.assert_array_equal(kv.read(3, 0, KEPT_TOKENS), start)


@pytest.mark.parametrize(("capacity", "head_dim", "dtype"), [(4096, 64, "float16"), (1000, 80, "float32")])
def test_slot_kv_release_takes_nothing_from_the_neighbours(capacity: int, head_dim: int, dtype: str) -> None:
    kv = make(capacity=capacity, head_dim=head_dim, dtype=dtype)
    for slot in range(3):
        kv.write(slot, 0, random_block(kv, capacity, slot))
    before = [kv.read(slot, 0, capacity) for slot in range(3)]
    kv.release(1, capacity)
    for slot in (0, 2):
        np.testing.assert_array_equal(kv.read(slot, 0, capacity), before[slot])
    fresh = random_block(kv, capacity, 9)
    kv.write(1, 0, fresh)
    np.testing.assert_array_equal(kv.read(1, 0, capacity), fresh)


def test_slot_kv_release_of_a_short_sequence_keeps_its_pages() -> None:
    kv = make(capacity=4096, head_dim=64)
    block = random_block(kv, KEPT_TOKENS, 1)
    kv.write(0, 0, block)
    kv.release(0, KEPT_TOKENS)
    np.testing.assert_array_equal(kv.read(0, 0, KEPT_TOKENS), block)
