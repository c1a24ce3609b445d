"""Matrices in GGUF's blocks, as integers, scales and minima: what their bytes say, with nothing rounded.

A weight is `scale * (value - zero) + minimum`. Scales and minima are halves, or in super-blocks of 256 the products of
a half with small integers, which fp32 holds exactly.

Source: ggml-common.h and ggml-quants.c (`dequantize_row_*`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BLOCK = 32
SUPER_BLOCK = 256


class Kind(IntEnum):
    """How ggml stores a tensor: of `GGMLQuantizationType`, which takes long to import, what is read here."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q8_0 = 8
    Q4_K = 12
    Q6_K = 14
    BF16 = 30


FLOAT_KINDS = (Kind.F32, Kind.F16, Kind.BF16)


class Form(IntEnum):
    """What stands beside the values; the numbers are those of engines/native/source/kernels.h."""

    FOUR = 1
    """A half per block; the values are 8 too high."""
    FOUR_MIN = 2
    """Two halves per block: scale and minimum."""
    EIGHT = 3
    """A half per block; the values are signed."""
    FOUR_SUPER = 4
    """Two halves per super-block, and two bytes per block that they are multiplied with."""
    SIX_SUPER = 5
    """A half per super-block, and a signed byte per half block; the values are 32 too high."""

    @property
    def chunk(self) -> int:
        """Values that share their halves."""
        return SUPER_BLOCK if self in (Form.FOUR_SUPER, Form.SIX_SUPER) else BLOCK

    @property
    def zero(self) -> int:
        return {Form.FOUR: 8, Form.SIX_SUPER: 32}.get(self, 0)


@dataclass(slots=True, kw_only=True, frozen=True)
class Blocks:
    """Rows of a matrix.

    Shapes: values [rows, depth], int8 in form EIGHT; halves [rows, chunks, 1 or 2] float16 bits; scales [rows, chunks,
    8 (int8: 16)] and minima [rows, chunks, 8] in super-blocks alone.
    """

    form: Form
    values: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    halves: npt.NDArray[np.uint16]
    scales: npt.NDArray[np.uint8] | npt.NDArray[np.int8] | None = None
    minima: npt.NDArray[np.uint8] | None = None

    def dequantised(self) -> Floats:
        """Shapes: returns [rows, depth]."""
        num_rows, depth = self.values.shape
        halves = self.halves.view(np.float16).astype(np.float32)
        scale, minimum = halves[..., :1], halves[..., 1:]
        if self.scales is not None:
            scale = scale * self.scales.astype(np.float32)
        if self.minima is not None:
            minimum = -minimum * self.minima.astype(np.float32)
        values = (self.values.astype(np.float32) - self.form.zero).reshape(num_rows, scale[0].size, -1)
        weights = values * scale.reshape(num_rows, -1, 1)
        if minimum.size:
            weights += minimum.reshape(num_rows, -1, 1)
        return np.asarray(weights.reshape(num_rows, depth), np.float32)


def is_exact(kind: int) -> bool:
    """Whether `read_blocks` reads this kind."""
    return kind in _READERS


def read_blocks(rows: Bytes, kind: int) -> Blocks:
    """Shapes: rows [rows, bytes of a row]."""
    return _READERS[Kind(kind)](rows)


def round_to_eight(weights: Floats) -> Blocks:
    """Weights of another kind as blocks of eight bits. Shapes: weights [rows, depth], the depth a multiple of 32."""
    blocks = weights.reshape(len(weights), -1, BLOCK)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    halves = np.minimum(largest / 127, 65504).astype(np.float16)
    steps = halves.astype(np.float32)
    values = np.clip(np.rint(blocks / np.where(steps > 0, steps, 1)), -127, 127).astype(np.int8)
    return Blocks(form=Form.EIGHT, values=values.reshape(weights.shape), halves=halves.view(np.uint16))


def read_floats(rows: Bytes, kind: int) -> Floats:
    """Rows of a kind that `FLOAT_KINDS` or `read_blocks` reads. Shapes: rows [rows, bytes], returns [rows, values]."""
    match kind:
        case Kind.F32:
            return np.ascontiguousarray(rows).view("<f4").astype(np.float32)
        case Kind.F16:
            return np.ascontiguousarray(rows).view("<f2").astype(np.float32)
        case Kind.BF16:
            wide = np.ascontiguousarray(rows).view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32)
        case _:
            return read_blocks(rows, kind).dequantised()


def _halves(blocks: Bytes) -> npt.NDArray[np.uint16]:
    """Shapes: blocks [rows, chunks, 2 * count], returns [rows, chunks, count]."""
    return np.ascontiguousarray(blocks).view("<u2")


def _split(rows: Bytes, block_bytes: int) -> Bytes:
    return rows.reshape(len(rows), -1, block_bytes)


def _nibbles(packed: Bytes, span: int) -> Bytes:
    """Low halves of `span` bytes, then their high halves, and so on.

    Shapes: packed [rows, chunks, n], returns [rows, 2 * n * chunks].
    """
    pairs = packed.reshape(len(packed), -1, 1, span)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(len(packed), -1)


def _read_q4_0(rows: Bytes) -> Blocks:
    blocks = _split(rows, 18)
    return Blocks(form=Form.FOUR, values=_nibbles(blocks[..., 2:], 16), halves=_halves(blocks[..., :2]))


def _read_q4_1(rows: Bytes) -> Blocks:
    blocks = _split(rows, 20)
    return Blocks(form=Form.FOUR_MIN, values=_nibbles(blocks[..., 4:], 16), halves=_halves(blocks[..., :4]))


def _read_q5_0(rows: Bytes) -> Blocks:
    blocks = _split(rows, 22)
    low = _nibbles(blocks[..., 6:], 16)
    high = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little").reshape(low.shape)
    values = (low | high << 4).view(np.int8) - np.int8(16)
    return Blocks(form=Form.EIGHT, values=values, halves=_halves(blocks[..., :2]))


def _read_q8_0(rows: Bytes) -> Blocks:
    blocks = _split(rows, 34)
    values = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(len(rows), -1)
    return Blocks(form=Form.EIGHT, values=values, halves=_halves(blocks[..., :2]))


def _read_q4_k(rows: Bytes) -> Blocks:
    blocks = _split(rows, 144)
    first, second, third = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=-1)
    values = _nibbles(blocks[..., 16:], 32)
    return Blocks(form=Form.FOUR_SUPER, values=values, halves=_halves(blocks[..., :4]), scales=scales, minima=minima)


def _read_q6_k(rows: Bytes) -> Blocks:
    blocks = _split(rows, 210)
    num_rows, num_blocks = blocks.shape[:2]
    low = blocks[..., :128].reshape(num_rows, num_blocks, 2, 1, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=3)
    high = blocks[..., 128:192].reshape(num_rows, num_blocks, 2, 1, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(2, 2, 1)
    values = low | (high >> shifts & 3) << 4
    return Blocks(
        form=Form.SIX_SUPER,
        values=values.reshape(num_rows, -1),
        halves=_halves(blocks[..., 208:]),
        scales=np.ascontiguousarray(blocks[..., 192:208]).view(np.int8),
    )


_READERS: dict[Kind, Callable[[Bytes], Blocks]] = {
    Kind.Q4_0: _read_q4_0,
    Kind.Q4_1: _read_q4_1,
    Kind.Q5_0: _read_q5_0,
    Kind.Q8_0: _read_q8_0,
    Kind.Q4_K: _read_q4_k,
    Kind.Q6_K: _read_q6_k,
}
