"""KV buffers of one stage: address space for every slot at full length, memory only where tokens were written.

The buffers are anonymous mappings: the system gives pages when a token's KV is first written and takes them back when
a slot is released. So attention gets plain contiguous slots, and nothing is reserved for the longest possible answer.
"""

import math
import mmap

import numpy as np
import numpy.typing as npt

from engines.contract import Block
from models.errors import ConfigError

KEPT_TOKENS = 256
"""A released slot keeps the pages of its first tokens: most requests are short, and page faults cost time."""


class SlotKv:
    """Shapes: one buffer [layers, parts (key, value), slots, kv_heads, capacity, head_dim]."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: str,
        num_parts: int = 2,
    ) -> None:
        self.dtype = np.dtype(dtype)
        # Every head of a slot begins on a page: only whole pages can be given back.
        page_tokens = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, head_dim * self.dtype.itemsize)
        self.capacity = -(-capacity // page_tokens) * page_tokens
        shape = (num_layers, num_parts, num_slots, num_kv_heads, self.capacity, head_dim)
        self._memory = _reserve(math.prod(shape) * self.dtype.itemsize)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # A huge page for every (layer, slot, head) would hold 2 MiB for the first token.
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._buffer: npt.NDArray[np.generic] = np.frombuffer(self._memory, self.dtype).reshape(shape)

    @property
    def num_layers(self) -> int:
        return int(self._buffer.shape[0])

    def rows(self, layer: int, part: int, slots: slice) -> npt.NDArray[np.generic]:
        """Keys (`part` 0) or values (1) of one layer. Shapes: [slots, kv_heads, capacity, head_dim]."""
        return self._buffer[layer, part, slots]

    def move(self, source: int, target: int, num_tokens: int) -> None:
        self._buffer[:, :, target, :, :num_tokens] = self._buffer[:, :, source, :, :num_tokens]

    def read(self, slot: int, start: int, num_tokens: int) -> Block:
        """Shapes: returns [layers, parts, kv_heads, num_tokens, head_dim], a copy."""
        return self._buffer[:, :, slot, :, start : start + num_tokens].copy()

    def write(self, slot: int, start: int, block: Block) -> None:
        """Shapes: block [layers, parts, kv_heads, tokens, head_dim]."""
        self._buffer[:, :, slot, :, start : start + block.shape[3]] = block

    def release(self, slot: int, num_tokens: int) -> None:
        """Give back the pages behind the first `KEPT_TOKENS` of the slot's `num_tokens`."""
        if num_tokens <= KEPT_TOKENS:
            return
        token_bytes = self._buffer.shape[-1] * self.dtype.itemsize
        head_bytes = self.capacity * token_bytes
        kept_bytes = -(-KEPT_TOKENS * token_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        used_bytes = -(-num_tokens * token_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if used_bytes <= kept_bytes:
            return
        num_layers, parts, num_slots, num_heads = self._buffer.shape[:4]
        for strip in range(num_layers * parts):
            for head in range(num_heads):
                offset = ((strip * num_slots + slot) * num_heads + head) * head_bytes
                self._memory.madvise(mmap.MADV_DONTNEED, offset + kept_bytes, used_bytes - kept_bytes)


def _reserve(size_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size_bytes, flags=_FLAGS)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"the system cannot reserve {size_bytes / 2**30:.0f} GiB of address space for KV slots ({error}); "
            "lower max_context_tokens or max_running, or allow overcommit"
        ) from error


_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
