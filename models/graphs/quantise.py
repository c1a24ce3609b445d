"""Weight quantisation, pure numpy: from fp32 matrices to the integer layouts that ONNX Runtime's kernels read."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.row_slices import row_slices

INT8_LIMIT = 127


@dataclass(slots=True, kw_only=True, frozen=True)
class ColumnInt8:
    """Symmetric int8 with one scale per output, for `MatMulIntegerToFloat`.

    Shapes: values [in, out], scales [out].
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


@dataclass(slots=True, kw_only=True, frozen=True)
class BlockInt8:
    """Blocks along the input dimension, for `MatMulNBits` with eight bits: w = (q - 128) * scale.

    Shapes: values [out, blocks, block_size], scales [out, blocks].
    Source: ONNX Runtime contrib operator `MatMulNBits`.
    """

    values: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]


def quantise_columns(weight: npt.NDArray[np.float32]) -> ColumnInt8:
    """Round each output's weights to int8. Shapes: weight [out, in]."""
    num_outputs, num_inputs = weight.shape
    values, scales = np.empty((num_inputs, num_outputs), np.int8), np.empty(num_outputs, np.float32)
    for rows in row_slices(num_outputs, num_inputs):
        part = weight[rows]
        steps = np.maximum(np.abs(part).max(axis=1), np.finfo(np.float32).tiny) / INT8_LIMIT
        values[:, rows] = np.clip(np.rint(part / steps[:, None]), -INT8_LIMIT, INT8_LIMIT).astype(np.int8).T
        scales[rows] = steps
    return ColumnInt8(values=values, scales=scales)


def quantise_blocks_int8(weight: npt.NDArray[np.float32], block_size: int) -> BlockInt8:
    """Symmetric int8 blocks around 128, which is the operator's default zero point. Shapes: weight [out, in]."""
    blocks = _blocks(weight, block_size)
    scales = np.maximum(np.abs(blocks).max(axis=2), np.finfo(np.float32).tiny) / INT8_LIMIT
    values = np.clip(np.rint(blocks / scales[..., None]) + 128, 0, 255).astype(np.uint8)
    return BlockInt8(values=values, scales=scales.astype(np.float32))


def _blocks(weight: npt.NDArray[np.float32], block_size: int) -> npt.NDArray[np.float32]:
    """Shapes: returns [out, blocks, block_size], the last block padded with zeros."""
    num_outputs, num_inputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -num_inputs % block_size)))
    return padded.reshape(num_outputs, -1, block_size)
