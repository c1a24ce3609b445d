"""What the native operators keep of KV in int8, and what they compute from it, in numpy.

Letters in shapes are those of the package's docstring: B rows, S tokens, D head dimension, N positions of a slot, NH
query heads, KVH key-value heads.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engines.native.reference import Floats, Halves, RowsOfKv, attend, to_bf16, to_floats

Bytes = npt.NDArray[np.int8]


def quantise_heads(x: npt.NDArray[np.floating]) -> tuple[Bytes, Halves]:
    """Each row in steps of a 127th of its largest magnitude, the step being a half. Shapes: x, integers [..., D], steps
    [...].
    """
    floats = x.astype(np.float32)
    scale = (np.abs(floats).max(-1) / np.float32(127)).astype(np.float16)
    step = scale.astype(np.float32)
    inverse = np.where(step > 0, np.float32(1) / np.where(step > 0, step, 1), 0).astype(np.float32)
    return np.clip(np.rint(floats * inverse[..., None]), -127, 127).astype(np.int8), scale


def kept_heads(x: npt.NDArray[np.floating]) -> Floats:
    """What is left of each row. Shapes: x and result [..., D]."""
    q, scale = quantise_heads(x)
    return dequantised(q, scale)


def dequantised(q: Bytes, scale: Halves) -> Floats:
    """Shapes: q and result [..., D], scale [...]."""
    values: Floats = q.astype(np.float32) * scale.astype(np.float32)[..., None]
    return values


@dataclass(slots=True, kw_only=True)
class Int8Rows:
    """The inputs of one SlotAttention over KV in int8; any integers and NaN scales where nothing is written.

    Shapes: values [B, KVH, N, 2 (key, value), D], scales [B, KVH, N, 2].
    """

    case: RowsOfKv
    values: Bytes
    scales: Halves

    @classmethod
    def of(cls, case: RowsOfKv) -> Self:
        """The same rows, with what is written of their caches in int8."""
        values, scales = quantise_heads(np.nan_to_num(np.stack([case.keys, case.values], 3)))
        rng = np.random.default_rng(0)
        for row, past in enumerate(case.past):
            unwritten = values[row, :, past:]
            unwritten[...] = rng.integers(-128, 128, unwritten.shape)
            scales[row, :, past:] = np.float16("nan")
        return cls(case=case, values=values, scales=scales)

    def inputs(self) -> dict[str, np.ndarray | None]:
        """In the operator's order, by its names. Shapes: as the package's docstring has them."""
        return self.case.inputs() | {
            "past_k": halves_of(self.case, self.values),
            "past_v": halves_of(self.case, self.scales),
        }


def halves_of(case: RowsOfKv, array: npt.NDArray[Any]) -> Halves:
    """As operators take it. Shapes: returns [B, KVH, any, D]."""
    return np.ascontiguousarray(array).view(np.float16).reshape(*array.shape[:2], -1, case.head_dim)


def int8_slot_attention(rows: Int8Rows, *, is_bf16: bool = False) -> tuple[Floats, Floats, Floats]:
    """Attended rows before quantisation, and the keys and values that both caches stand for, new positions included.

    Shapes: returns [B, S, NH * D] and twice [B, KVH, N, D].
    """
    cached = dequantised(rows.values, rows.scales)
    keys, values = cached[..., 0, :].copy(), cached[..., 1, :].copy()
    return attend(rows.case, keys, values, to_bf16 if is_bf16 else to_floats, kept_heads)
