"""KV slots in int8: integers and their scales stay together, whole pages are given back, graphs see halves."""

import mmap
from typing import Any

import numpy as np
import pytest

from engines.onnx.int8_kv import Int8Kv, bytes_per_token
from engines.onnx.slot_kv import KEPT_TOKENS
from tests.engines.onnx.test_slot_kv import assert_gives_back


def make(**changes: Any) -> Int8Kv:
    sizes: dict[str, Any] = {"num_layers": 2, "num_slots": 3, "num_kv_heads": 2, "capacity": 100, "head_dim": 16}
    return Int8Kv(**(sizes | changes))


def random_block(kv: Int8Kv, num_tokens: int, seed: int) -> Any:
    rows = kv.rows(0, 0, slice(None))
    shape = (kv.num_layers, 1, rows.shape[1], num_tokens, 2 * rows.shape[3] + 4)
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 256])
def test_int8_kv_gives_back_what_was_written(head_dim: int) -> None:
    kv = make(head_dim=head_dim)
    blocks = {slot: random_block(kv, 20, slot) for slot in range(3)}
    assert_gives_back(kv, blocks)
    assert kv.read(0, 0, 1).nbytes == bytes_per_token(2, 2, head_dim)


def test_int8_kv_rows_are_views_laid_out_as_operators_read_them() -> None:
    """Of a position the key, then the value; the scale of the key, then that of the value."""
    kv = make()
    block = random_block(kv, 4, 3)
    kv.write(1, 7, block)
    for layer in range(2):
        values, scales = (kv.rows(layer, part, slice(1, 2)) for part in range(2))
        assert values.dtype == scales.dtype == np.float16
        assert values.shape == (1, 2, kv.capacity, 16)
        assert scales.shape == (1, 2, kv.capacity * 2 // 16, 16)
        assert values.flags.c_contiguous
        assert scales.flags.c_contiguous
        np.testing.assert_array_equal(values.view(np.int8)[0, :, 7:11], block[layer, 0, ..., :32])
        of_positions = scales.reshape(2, kv.capacity, 2).view(np.int8)
        np.testing.assert_array_equal(of_positions[:, 7:11], block[layer, 0, ..., 32:])
        assert np.shares_memory(values, kv.rows(layer, 0, slice(None)))


def test_int8_kv_move_copies_a_sequence() -> None:
    kv = make()
    kv.write(2, 0, random_block(kv, 30, 4))
    kv.write(0, 0, random_block(kv, 30, 5))
    kept = kv.read(2, 0, 30)
    kv.move(2, 0, 25)
    np.testing.assert_array_equal(kv.read(0, 0, 25), kept[:, :, :, :25])
    np.testing.assert_array_equal(kv.read(2, 0, 30), kept)


@pytest.mark.parametrize("head_dim", [64, 80])
def test_int8_kv_release_takes_nothing_but_what_lies_behind_the_kept_tokens(head_dim: int) -> None:
    kv = make(capacity=3000, head_dim=head_dim)
    for slot in range(3):
        kv.write(slot, 0, random_block(kv, kv.capacity, slot))
    before = [kv.read(slot, 0, kv.capacity) for slot in range(3)]
    kv.release(1, kv.capacity)
    for slot in (0, 2):
        np.testing.assert_array_equal(kv.read(slot, 0, kv.capacity), before[slot])
    after = kv.read(1, 0, kv.capacity)
    np.testing.assert_array_equal(after[:, :, :, :KEPT_TOKENS], before[1][:, :, :, :KEPT_TOKENS])
    assert not after[:, :, :, mmap.PAGESIZE // 4 :].any()
