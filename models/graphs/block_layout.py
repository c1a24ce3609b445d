"""The layout in which native operators read a matrix in blocks (`engines/native/source/blocks.h`).

A header, then panels of 32 outputs (the last one filled up with zeros), each its chunks one after the other. A chunk
of 32 or 256 inputs has, for all 32 outputs each: the halves, the scales and the minima of super-blocks, and the values
in groups of four inputs. Where values have four or six bits, a byte has one of the first 16 inputs of a block and one
of its last 16; the upper two of six bits follow, four inputs a byte.

Bytes per weight: 0.5625 (Q4_0), 0.625 (Q4_1), 1.0625 (Q8_0, Q5_0), 0.578 (Q4_K: its scales take eight bits instead
of six) and 0.820 (Q6_K).
"""

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from models.sources.gguf_blocks import BLOCK, Blocks, Form
from models.sources.source import BlockMatrix

Bytes = npt.NDArray[np.uint8]

PANEL = 32
MAGIC = 0x32626866
HEADER = struct.Struct("<IIqqq")
HEADER_BYTES = 64
SLICE_VALUES = 1 << 22
"""What is unpacked at once, by each of two threads: some tens of megabytes."""
NUM_THREADS = 2


def header(form: Form, depth: int, width: int, num_bytes: int) -> bytes:
    """What stands before a packed matrix from `depth` inputs to `width` outputs."""
    return HEADER.pack(MAGIC, form, depth, width, num_bytes).ljust(HEADER_BYTES, b"\0")


def packed(matrix: BlockMatrix) -> Iterator[bytes]:
    """A matrix in the layout, header first, piece by piece."""
    num_rows, depth = matrix.shape
    step = max(PANEL, SLICE_VALUES // depth // PANEL * PANEL)
    starts = range(0, num_rows, step)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        first = matrix.read(0, min(PANEL, num_rows))
        yield header(first.form, depth, num_rows, packed_size(first.form, depth, num_rows))
        # A few at a time: all would lie in memory at once.
        for begin in range(0, len(starts), NUM_THREADS):
            some = starts[begin : begin + NUM_THREADS]
            yield from pool.map(lambda start: pack(matrix.read(start, min(start + step, num_rows))), some)


def packed_size(form: Form, depth: int, width: int) -> int:
    """Bytes behind the header."""
    beside = {Form.FOUR: 2, Form.FOUR_MIN: 4, Form.EIGHT: 2, Form.FOUR_SUPER: 20, Form.SIX_SUPER: 18}[form]
    values = {Form.EIGHT: form.chunk, Form.SIX_SUPER: form.chunk * 3 // 4}.get(form, form.chunk // 2)
    return -(-width // PANEL) * (depth // form.chunk) * PANEL * (beside + values)


def pack(blocks: Blocks) -> bytes:
    """The panels of these rows, which begin at a panel."""
    num_rows = len(blocks.values)
    parts = [_columns(blocks.halves)]
    parts += [_columns(part) for part in (blocks.scales, blocks.minima) if part is not None]
    parts += [_columns(part) for part in _value_words(blocks)]
    panels = [_panels(part, num_rows) for part in parts]
    return np.concatenate(panels, axis=2).tobytes()


def _value_words(blocks: Blocks) -> list[npt.NDArray[np.uint32]]:
    """Shapes: each [rows, chunks, groups] of four bytes."""
    form, num_rows = blocks.form, len(blocks.values)
    num_chunks = blocks.values.shape[1] // form.chunk
    if form is Form.EIGHT:
        return [_words(blocks.values.view(np.uint8), num_chunks)]
    values = blocks.values.view(np.uint8).reshape(num_rows, -1, 2, BLOCK // 2)
    low = values & np.uint8(15)
    words = [_words(low[:, :, 0] | low[:, :, 1] << np.uint8(4), num_chunks)]
    if form is Form.SIX_SUPER:
        quarters = (values >> np.uint8(4)).reshape(num_rows, -1, 4, 8)
        first, second, third, fourth = (quarters[:, :, i] << np.uint8(shift) for i, shift in enumerate((4, 6, 0, 2)))
        words.append(_words(first | second | third | fourth, num_chunks))
    return words


def _words(values: Bytes, num_chunks: int) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint32).reshape(len(values), num_chunks, -1)


def _columns(part: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Rows side by side. Shapes: [rows, chunks, n], filled up to whole panels, to [panels, chunks, n, PANEL]."""
    missing = -len(part) % PANEL
    filled = np.pad(part, ((0, missing), (0, 0), (0, 0))) if missing else part
    return np.ascontiguousarray(filled.reshape(-1, PANEL, *part.shape[1:]).transpose(0, 2, 3, 1))


def _panels(part: npt.NDArray[np.generic], num_rows: int) -> Bytes:
    """Shapes: returns [panels, chunks, bytes]."""
    return part.view(np.uint8).reshape(-(-num_rows // PANEL), part.shape[1], -1)
