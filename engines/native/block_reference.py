"""What the native operators on blocks compute, in numpy: rows quantised in blocks of 32, and products of such rows.

Letters in shapes are those of the package's docstring: T tokens, K depth, N width.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from models.graphs.block_layout import HEADER_BYTES, header, pack
from models.sources.gguf_blocks import BLOCK, Blocks, Kind, read_blocks

Floats = npt.NDArray[np.float32]
BLOCK_BYTES = {Kind.Q4_0: 18, Kind.Q4_1: 20, Kind.Q5_0: 22, Kind.Q8_0: 34, Kind.Q4_K: 144, Kind.Q6_K: 210}
HALF_PLACES = {Kind.Q4_1: (0, 2), Kind.Q4_K: (0, 2), Kind.Q6_K: (208,)}
"""Where a block has its halves; at byte 0 where nothing is said."""


@dataclass(slots=True, kw_only=True)
class BlockRows:
    """Rows in blocks. Shapes: q [..., K] int8, scale [..., K / 32], sums [..., K / 16] int32."""

    q: npt.NDArray[np.int8]
    scale: Floats
    sums: npt.NDArray[np.int32]

    @classmethod
    def of(cls, x: Floats) -> Self:
        """Each block over its largest magnitude, in steps of a 127th. Shapes: x [..., K]."""
        blocks = x.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)
        largest = np.abs(blocks).max(-1, keepdims=True)
        inverse = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, 1), 0).astype(np.float32)
        q = np.rint(blocks * inverse).astype(np.int8).reshape(x.shape)
        return cls(q=q, scale=(largest[..., 0] / np.float32(127)).astype(np.float32), sums=half_sums(q))

    @classmethod
    def random(cls, num_rows: int, depth: int, *, seed: int = 0) -> Self:
        """Rows with a block of zeros."""
        x = np.random.default_rng(seed).standard_normal((num_rows, depth), np.float32)
        x[:1, :BLOCK] = 0
        return cls.of(x)

    def values(self) -> npt.NDArray[np.float64]:
        """Shapes: returns [..., K]."""
        scale = np.repeat(self.scale.astype(np.float64), BLOCK, axis=-1)
        return np.asarray(self.q * scale)

    def inputs(self) -> dict[str, np.ndarray | None]:
        return {"q": self.q, "block_scale": self.scale, "block_sums": self.sums}


def half_sums(q: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Shapes: q [..., K], returns [..., K / 16]."""
    return np.asarray(q.reshape(*q.shape[:-1], q.shape[-1] // (BLOCK // 2), BLOCK // 2).sum(-1, dtype=np.int32))


def random_rows(kind: Kind, num_rows: int, depth: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Rows of a matrix as a file might have them: any bytes, but for halves of a size that weights have.

    Shapes: returns [num_rows, bytes of a row].
    """
    rng = np.random.default_rng(seed)
    values = 256 if BLOCK_BYTES[kind] > 100 else BLOCK
    blocks = rng.integers(0, 256, (num_rows, depth // values, BLOCK_BYTES[kind])).astype(np.uint8)
    for place in HALF_PLACES.get(kind, (0,)):
        halves = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype(np.float16)
        blocks[..., place : place + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(num_rows, -1)


def random_blocks(kind: Kind, num_rows: int, depth: int, *, seed: int = 0) -> Blocks:
    return read_blocks(random_rows(kind, num_rows, depth, seed=seed), kind)


def weights_of(*matrices: Blocks) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Matrices one after the other, as a student has them, and where each begins."""
    pieces: list[bytes] = []
    offsets = []
    for blocks in matrices:
        size = sum(map(len, pieces))
        pieces.append(b"\0" * (-size % HEADER_BYTES))
        offsets.append(size + len(pieces[-1]))
        panels = pack(blocks)
        pieces.append(header(blocks.form, blocks.values.shape[1], len(blocks.values), len(panels)) + panels)
    return np.frombuffer(b"".join(pieces), np.uint8), offsets


def offsets_of(offsets: list[int]) -> dict[str, float]:
    """The attributes of a BlockProduct."""
    names = ("offset", "second_offset", "third_offset")
    return dict(zip(names, [*offsets, -1, -1], strict=False))


def block_product(rows: BlockRows, *matrices: Blocks) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The product without any rounding, and the sum of the magnitudes of what is added up in it.

    Shapes: each [T, N].
    """
    weights = np.concatenate([blocks.dequantised() for blocks in matrices]).astype(np.float64)
    values = rows.values()
    return values @ weights.T, np.abs(values) @ np.abs(weights).T
