"""Weight quantisation, pure numpy: from fp32 matrices to the integer layouts that ONNX Runtime's kernels read."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

INT8_LIMIT = 127


@dataclass(slots=True, kw_only=True, frozen=True)
class ColumnInt8:
    """Symmetric int8 with one scale per output, for `MatMulIntegerToFloat`.

    Shapes: values [in, out], scales [out].
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


@dataclass(slots=True, kw_only=True, frozen=True)
class BlockBits:
    """Blocks along the input dimension, for `MatMulNBits`: w = (q - zero_point) * scale.

    Shapes: values [out, blocks, block_size * bits / 8], scales [out, blocks], zero_points packed like values.
    Source: ONNX Runtime contrib operator `MatMulNBits`.
    """

    values: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.uint8] | None


def quantise_columns(weight: npt.NDArray[np.float32]) -> ColumnInt8:
    """Round each output's weights to int8. Shapes: weight [out, in]."""
    scales = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / INT8_LIMIT
    values = np.clip(np.rint(weight / scales[:, None]), -INT8_LIMIT, INT8_LIMIT).astype(np.int8)
    return ColumnInt8(values=np.ascontiguousarray(values.T), scales=scales.astype(np.float32))


def quantise_blocks_int8(weight: npt.NDArray[np.float32], block_size: int) -> BlockBits:
    """Symmetric int8 blocks around 128, which is the operator's default zero point. Shapes: weight [out, in]."""
    blocks = _blocks(weight, block_size)
    scales = np.maximum(np.abs(blocks).max(axis=2), np.finfo(np.float32).tiny) / INT8_LIMIT
    values = np.clip(np.rint(blocks / scales[..., None]) + 128, 0, 255).astype(np.uint8)
    return BlockBits(values=values, scales=scales.astype(np.float32), zero_points=None)


def quantise_blocks_int4(weight: npt.NDArray[np.float32], block_size: int) -> BlockBits:
    """Asymmetric int4 blocks: each spans its own minimum and maximum. Shapes: weight [out, in]."""
    blocks = _blocks(weight, block_size)
    low = np.minimum(blocks.min(axis=2), 0.0)
    high = np.maximum(blocks.max(axis=2), 0.0)
    scales = np.maximum(high - low, np.finfo(np.float32).tiny) / 15
    zero_points = np.clip(np.rint(-low / scales), 0, 15).astype(np.uint8)
    values = np.clip(np.rint(blocks / scales[..., None]) + zero_points[..., None], 0, 15).astype(np.uint8)
    return BlockBits(
        values=_pack_nibbles(values), scales=scales.astype(np.float32), zero_points=_pack_nibbles(zero_points)
    )


def _blocks(weight: npt.NDArray[np.float32], block_size: int) -> npt.NDArray[np.float32]:
    """Shapes: returns [out, blocks, block_size], the last block padded with zeros."""
    num_outputs, num_inputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -num_inputs % block_size)))
    return padded.reshape(num_outputs, -1, block_size)


def _pack_nibbles(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two values a byte along the last dimension, the first in the low half; odd counts are padded."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
    return (padded[..., 0::2] | (padded[..., 1::2] << 4)).astype(np.uint8)
