"""KV of one stage in int8: a byte a value, and a scale, a half float, for each token's key and value of every head.

Graphs say that KV is fp16, and need not know: fenhe's operators take payload and scales in place of keys and values, as
tensors of halves, and tell by their shapes (`engines/native`). So a student serves both from the same files.
"""

import math
import mmap

import numpy as np
import numpy.typing as npt

from engines.contract import Block
from engines.onnx.slot_kv import SlotKv

SCALE_BYTES = 2


class Int8Kv:
    """As `SlotKv`, in two buffers: [layers, 1, slots, kv_heads, capacity, 2 * head_dim] bytes, of a token's key and
    then its value, and [layers, 1, slots, kv_heads, capacity, 2] scales. A block holds both side by side, so that one
    cannot be moved without the other.
    """

    def __init__(self, *, num_layers: int, num_slots: int, num_kv_heads: int, capacity: int, head_dim: int) -> None:
        """`head_dim` is even."""
        # Whole pages of either buffer, and whole rows of scales as the graphs see them.
        step = math.lcm(mmap.PAGESIZE // (2 * SCALE_BYTES), head_dim // 2)
        self.capacity = -(-capacity // step) * step
        self._head_dim = head_dim
        self._parts = tuple(
            SlotKv(
                num_layers=num_layers,
                num_parts=1,
                num_slots=num_slots,
                num_kv_heads=num_kv_heads,
                capacity=self.capacity,
                head_dim=width,
                dtype=dtype,
            )
            for width, dtype in ((2 * head_dim, "int8"), (2, "float16"))
        )
        assert all(part.capacity == self.capacity for part in self._parts)

    @property
    def num_layers(self) -> int:
        return self._parts[0].num_layers

    def rows(self, layer: int, part: int, slots: slice) -> npt.NDArray[np.generic]:
        """Keys and values (`part` 0) or scales (1) of one layer, as halves.

        Shapes: [slots, kv_heads, capacity, head_dim] or [slots, kv_heads, 2 * capacity / head_dim, head_dim].
        """
        rows = self._parts[part].rows(layer, 0, slots).view(np.float16)
        return rows.reshape(*rows.shape[:2], -1, self._head_dim)

    def move(self, source: int, target: int, num_tokens: int) -> None:
        for part in self._parts:
            part.move(source, target, num_tokens)

    def read(self, slot: int, start: int, num_tokens: int) -> Block:
        """Shapes: returns [layers, 1, kv_heads, num_tokens, 2 * head_dim + 4] bytes, a copy."""
        return np.concatenate([part.read(slot, start, num_tokens).view(np.int8) for part in self._parts], -1)

    def write(self, slot: int, start: int, block: Block) -> None:
        """Shapes: block as `read` returns it."""
        values, scales = np.split(block, [2 * self._head_dim], -1)
        self._parts[0].write(slot, start, values)
        self._parts[1].write(slot, start, np.ascontiguousarray(scales).view(np.float16))

    def release(self, slot: int, num_tokens: int) -> None:
        for part in self._parts:
            part.release(slot, num_tokens)


def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int) -> int:
    return num_layers * num_kv_heads * 2 * (head_dim + SCALE_BYTES)
