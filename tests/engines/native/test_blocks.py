"""Operators on blocks: products of GGUF's own blocks, at every instruction set, and rows quantised in blocks."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.native.block_reference import (
    BlockRows,
    block_product,
    half_sums,
    offsets_of,
    random_blocks,
    weights_of,
)
from engines.native.instructions import attends_in_bf16
from engines.native.reference import RowsOfKv, rms_norm, slot_attention, swiglu
from engines.native.single import run_operator
from models.sources.gguf_blocks import BLOCK, Blocks, Kind
from tests.engines.native.comparing import assert_same_bits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native operators are built on Linux")

KINDS = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q8_0, Kind.Q4_K, Kind.Q6_K)
ROUNDING = 2e-6
"""Share of the sum of magnitudes: fp32 sums of some hundred terms."""


def multiply(library: Path, rows: BlockRows, *matrices: Blocks, num_threads: int = 2) -> Any:
    weights, offsets = weights_of(*matrices)
    inputs = rows.inputs() | {"weights": weights}
    (product,) = run_operator(
        library, "BlockProduct", inputs, 1, attributes=offsets_of(offsets), num_threads=num_threads
    )
    return product


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("num_rows", "depth", "width"), [(1, 768, 96), (4, 256, 33), (7, 512, 50), (103, 256, 32)])
def test_a_product_equals_the_reference(library: Path, kind: Kind, num_rows: int, depth: int, width: int) -> None:
    rows, blocks = BlockRows.random(num_rows, depth), random_blocks(kind, width, depth)
    expected, magnitude = block_product(rows, blocks)
    assert (np.abs(multiply(library, rows, blocks) - expected) <= ROUNDING * magnitude).all()


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q8_0], ids=lambda kind: kind.name)
def test_a_depth_need_not_fill_a_chunk_of_blocks(library: Path, kind: Kind) -> None:
    rows, blocks = BlockRows.random(9, 11 * BLOCK), random_blocks(kind, 40, 11 * BLOCK)
    expected, magnitude = block_product(rows, blocks)
    assert (np.abs(multiply(library, rows, blocks) - expected) <= ROUNDING * magnitude).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_largest_values_are_exact(library: Path, kind: Kind) -> None:
    """Scales that are powers of two make every sum exact: all weights and rows at the ends of their ranges."""
    blocks = random_blocks(kind, 64, 512)
    blocks.halves[...] = np.float16(0.25).view(np.uint16)
    rng = np.random.default_rng(1)
    low, high = (-128, 127) if blocks.values.dtype == np.int8 else (0, 63 if kind is Kind.Q6_K else 15)
    blocks.values[...] = rng.choice([low, high], blocks.values.shape)
    if blocks.scales is not None:
        blocks.scales[...] = 1
    if blocks.minima is not None:
        blocks.minima[...] = 3
    q = rng.choice([-127, 127], (6, 512)).astype(np.int8)
    q[0], q[1] = 127, -127
    rows = BlockRows(q=q, scale=np.full((6, 16), 0.5, np.float32), sums=half_sums(q))
    for count in (1, 6):
        some = BlockRows(q=rows.q[:count], scale=rows.scale[:count], sums=rows.sums[:count])
        np.testing.assert_array_equal(multiply(library, some, blocks), block_product(some, blocks)[0])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_row_has_its_bits_alone_and_among_any_number(library: Path, kind: Kind) -> None:
    rows, blocks = BlockRows.random(199, 512), random_blocks(kind, 70, 512)
    expected = multiply(library, rows, blocks)
    for first, count in ((0, 1), (3, 2), (3, 4), (10, 5), (20, 8), (30, 96), (60, 101)):
        part = slice(first, first + count)
        some = BlockRows(q=rows.q[part], scale=rows.scale[part], sums=rows.sums[part])
        assert_same_bits([multiply(library, some, blocks, num_threads=1)], [expected[part]])


def test_matrices_of_several_kinds_read_the_same_rows(library: Path) -> None:
    rows = BlockRows.random(3, 256)
    matrices = [random_blocks(Kind.Q4_K, 64, 256), random_blocks(Kind.Q6_K, 35, 256), random_blocks(Kind.Q4_0, 32, 256)]
    apart = [multiply(library, rows, blocks) for blocks in matrices]
    assert_same_bits([multiply(library, rows, *matrices)], [np.concatenate(apart, -1)])


def test_a_product_of_no_rows_is_empty(library: Path) -> None:
    assert multiply(library, BlockRows.random(0, 256), random_blocks(Kind.Q4_0, 32, 256)).shape == (0, 32)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 1, "the weights have no matrix there"),
        (4, 9, "a kind that this version does not know"),
        (8, 32, "q must be as wide as the matrix is deep"),
        (16, 0, "a matrix without columns"),
        (16, 65, "cut short"),
        (24, 1, "cut short"),
    ],
)
def test_a_damaged_header_is_refused(library: Path, place: int, value: int, message: str) -> None:
    rows, blocks = BlockRows.random(1, 256), random_blocks(Kind.Q4_0, 64, 256)
    weights, offsets = weights_of(blocks)
    weights = weights.copy()
    size = 4 if place < 8 else 8
    weights[place : place + size] = np.frombuffer(value.to_bytes(size, "little"), np.uint8)
    with pytest.raises(Exception, match=message):
        run_operator(library, "BlockProduct", rows.inputs() | {"weights": weights}, 1, attributes=offsets_of(offsets))


@pytest.mark.parametrize("size", [0, 40, 64, 1000])
def test_weights_that_are_cut_short_are_refused(library: Path, size: int) -> None:
    rows, blocks = BlockRows.random(1, 256), random_blocks(Kind.Q4_0, 64, 256)
    weights, offsets = weights_of(blocks)
    inputs = rows.inputs() | {"weights": weights[:size]}
    with pytest.raises(Exception, match="behind the end of the weights"):
        run_operator(library, "BlockProduct", inputs, 1, attributes=offsets_of(offsets))


@pytest.mark.parametrize(("name", "width"), [("block_scale", 7), ("block_sums", 15)])
def test_rows_that_do_not_fit_are_refused(library: Path, name: str, width: int) -> None:
    rows, blocks = BlockRows.random(1, 256), random_blocks(Kind.Q4_0, 32, 256)
    weights, offsets = weights_of(blocks)
    inputs = rows.inputs() | {"weights": weights}
    kept = inputs[name]
    assert kept is not None
    inputs[name] = kept[:, :width]
    with pytest.raises(Exception, match="a value per 32 of q, block_sums one per 16"):
        run_operator(library, "BlockProduct", inputs, 1, attributes=offsets_of(offsets))


def assert_blocks(got: list[Any], expected: np.ndarray, rounding: float = 1e-3) -> None:
    q, scale, sums = got
    step = np.repeat(scale, BLOCK, -1)
    largest = np.abs(expected).reshape(*expected.shape[:-1], -1, BLOCK).max(-1)
    np.testing.assert_allclose(scale, largest / 127, rtol=rounding, atol=1e-7)
    assert (np.abs(q * step - expected) <= step * 0.5 + rounding * np.abs(expected).max()).all()
    np.testing.assert_array_equal(sums, half_sums(q))


def test_rows_are_quantised_in_blocks(library: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 96), np.float32)
    x[0, 0, :32], x[0, 1, 32:64] = 0, 1e-35
    got = run_operator(library, "QuantizeBlocks", {"x": x}, 3)
    assert_blocks(got, x)
    expected = BlockRows.of(np.where(np.abs(x) < 1e-30, 0, x).astype(np.float32))
    assert (got[0] == expected.q).mean() > 0.99
    assert not got[0][0, 0, :32].any()
    assert not got[1][0, 1, 1]


def test_a_norm_is_quantised_in_blocks(library: Path) -> None:
    rng = np.random.default_rng(0)
    x, skip = rng.standard_normal((2, 2, 3, 160), np.float32)
    gamma = rng.standard_normal(160, np.float32)
    inputs = {"x": x, "gamma": gamma, "skip": skip}
    *blocks, total = run_operator(library, "SkipRmsNormQuantizeBlocks", inputs, 4, attributes={"epsilon": 1e-5})
    np.testing.assert_allclose(total, x + skip, rtol=1e-6)
    assert_blocks(blocks, rms_norm(x + skip, gamma, 1e-5))
    alone = run_operator(
        library, "SkipRmsNormQuantizeBlocks", {"x": total, "gamma": gamma}, 3, attributes={"epsilon": 1e-5}
    )
    assert_same_bits(alone, blocks)


def test_swiglu_is_quantised_in_blocks(library: Path) -> None:
    gate_up = np.random.default_rng(0).standard_normal((2, 3, 192), np.float32) * 3
    assert_blocks(run_operator(library, "SwigluQuantizeBlocks", {"gate_up": gate_up}, 3), swiglu(gate_up))


@pytest.mark.parametrize(("operator", "width"), [("QuantizeBlocks", 48), ("SwigluQuantizeBlocks", 96)])
def test_rows_that_are_no_whole_blocks_are_refused(library: Path, operator: str, width: int) -> None:
    with pytest.raises(Exception, match=r"must be a multiple of (32|64) wide"):
        run_operator(library, operator, {"x": np.zeros((1, 1, width), np.float32)}, 3)


@pytest.mark.parametrize("has_scale", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 37])
def test_attention_ends_in_blocks(library: Path, num_tokens: int, has_scale: bool) -> None:
    case = RowsOfKv.random(num_rows=2, num_tokens=num_tokens, past=(70, 3))
    inputs: dict[str, Any] = case.inputs()
    if not has_scale:
        inputs = {"qkv": case.qkv * case.row_scale} | {name: inputs[name] for name in list(inputs)[1:]}
        inputs[list(inputs)[1]] = None
    *blocks, keys, values = run_operator(library, "BlockSlotAttention", inputs, 5, attributes=case.attributes())
    is_bf16 = attends_in_bf16(library)
    attended, _, _ = slot_attention(case, is_bf16=is_bf16)
    assert_blocks(blocks, attended, 5e-3 if is_bf16 else 1e-3)
    _, _, row_keys, row_values = run_operator(library, "SlotAttention", case.inputs(), 4, attributes=case.attributes())
    if has_scale:
        assert_same_bits([keys, values], [row_keys, row_values])


def test_attention_in_blocks_refuses_what_is_missing(library: Path) -> None:
    case = RowsOfKv.random(num_rows=1, num_tokens=1, past=(3,))
    inputs: dict[str, Any] = {"qkv": case.qkv}
    with pytest.raises(Exception, match="past_k must be"):
        run_operator(library, "BlockSlotAttention", inputs, 5, attributes=case.attributes())
