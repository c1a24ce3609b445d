"""GGUF's blocks as integers, and the layout of the native operators: nothing is lost on the way."""

from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from engines.native.block_reference import random_blocks, random_rows
from models.graphs.block_layout import HEADER, HEADER_BYTES, MAGIC, PANEL, pack, packed, packed_size
from models.sources.gguf_blocks import BLOCK, Blocks, Form, Kind, read_blocks, read_floats, round_to_eight

KINDS = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q8_0, Kind.Q4_K, Kind.Q6_K)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_blocks_have_the_weights_that_gguf_reads(kind: Kind) -> None:
    rows = random_rows(kind, 5, 768)
    expected = dequantize(rows, GGMLQuantizationType(kind))
    np.testing.assert_allclose(read_blocks(rows, kind).dequantised(), expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(read_floats(rows, kind), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_float_rows_are_read_as_they_are(kind: Kind) -> None:
    values = np.random.default_rng(0).integers(-100, 100, (3, 8)).astype(np.float32)
    stored: dict[Kind, Any] = {Kind.F32: values, Kind.F16: values.astype(np.float16)}
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    rows = stored.get(kind, bits).view(np.uint8).reshape(3, -1)
    np.testing.assert_array_equal(read_floats(rows, kind), values)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("num_rows", [32, 33, 70])
def test_packing_loses_nothing(kind: Kind, num_rows: int) -> None:
    blocks = random_blocks(kind, num_rows, 512)
    panels = pack(blocks)
    assert len(panels) == packed_size(blocks.form, 512, num_rows)
    read = unpack(panels, blocks.form, 512)
    for name in ("values", "halves", "scales", "minima"):
        stored, got = getattr(blocks, name), read[name]
        if stored is not None:
            np.testing.assert_array_equal(got[:num_rows].reshape(stored.shape), stored.view(got.dtype))
            assert not got[num_rows:].any()


def unpack(panels: bytes, form: Form, depth: int) -> dict[str, np.ndarray]:
    """What the layout says, one column after the other: the plainest reading of its description."""
    sizes = {Form.FOUR: (1, 0, 0), Form.FOUR_MIN: (2, 0, 0), Form.EIGHT: (1, 0, 0)}
    num_halves, num_scales, num_minima = sizes.get(form, (2, 8, 8) if form is Form.FOUR_SUPER else (1, 16, 0))
    num_chunks = depth // form.chunk
    chunks = np.frombuffer(panels, np.uint8).reshape(-1, num_chunks, chunk_bytes(form))
    kept: dict[str, list[np.ndarray]] = {"values": [], "halves": [], "scales": [], "minima": []}
    for panel in chunks:
        for column in range(PANEL):
            found: dict[str, list[np.ndarray]] = {name: [] for name in kept}
            for chunk in panel:
                halves, rest = np.split(chunk, [2 * num_halves * PANEL])
                scales, minima, values = np.split(rest, [num_scales * PANEL, (num_scales + num_minima) * PANEL])
                found["halves"].append(halves.view(np.uint16).reshape(num_halves, PANEL)[:, column])
                found["scales"].append(scales.reshape(num_scales, PANEL)[:, column])
                found["minima"].append(minima.reshape(num_minima, PANEL)[:, column])
                found["values"].append(values_of(values, form, column))
            for name, parts in found.items():
                kept[name].append(np.concatenate(parts))
    return {name: np.stack(rows) for name, rows in kept.items()}


def chunk_bytes(form: Form) -> int:
    return packed_size(form, form.chunk, PANEL)


def values_of(stored: np.ndarray, form: Form, column: int) -> np.ndarray:
    if form is Form.EIGHT:
        return stored.reshape(8, PANEL, 4)[:, column].reshape(-1)
    low = stored[: form.chunk // 2 * PANEL].reshape(-1, 4, PANEL, 4)[:, :, column]
    values = np.concatenate([low & 15, low >> 4], axis=1).reshape(-1, BLOCK)
    if form is Form.SIX_SUPER:
        upper = stored[form.chunk // 2 * PANEL :].reshape(-1, 2, PANEL, 4)[:, :, column].reshape(-1, 8)
        high = np.concatenate([upper >> 4 & 3, upper >> 6, upper & 3, upper >> 2 & 3], axis=1)
        values = values | high << 4
    return values.reshape(-1)


class Matrix:
    """Rows in blocks, read in slices."""

    is_exact = True

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.values.shape[0], self.blocks.values.shape[1]

    def read(self, first: int, end: int) -> Blocks:
        kept = {name: getattr(self.blocks, name) for name in ("values", "halves", "scales", "minima")}
        part: dict[str, Any] = {name: None if one is None else one[first:end] for name, one in kept.items()}
        return Blocks(form=self.blocks.form, **part)


def test_a_matrix_is_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks(Kind.Q6_K, 200, 256)
    monkeypatch.setattr("models.graphs.block_layout.SLICE_VALUES", 64 * 256)
    head, *pieces = packed(Matrix(blocks))
    assert len(pieces) == 4
    assert b"".join(pieces) == pack(blocks)
    assert len(head) == HEADER_BYTES
    assert HEADER.unpack_from(head) == (MAGIC, Form.SIX_SUPER, 256, 200, len(pack(blocks)))


def test_other_weights_are_rounded_to_eight_bits() -> None:
    weights = np.random.default_rng(0).standard_normal((4, 96), np.float32)
    weights[0, :32] = 0
    rounded = round_to_eight(weights).dequantised()
    steps = np.repeat(np.abs(weights).reshape(4, 3, 32).max(-1) / 127, 32, axis=1)
    assert (np.abs(rounded - weights) <= 0.52 * steps).all()
    assert not rounded[0, :32].any()
