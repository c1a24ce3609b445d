"""The trial of a compiled library, run as a program: its operators against `reference`; exit 0 when they agree.

`python -m engines.native.trial LIBRARY [INSTRUCTIONS]` tries another instruction set than the best, such as avx2.
"""

import sys
from pathlib import Path

import numpy as np

from engines.drawing import draw
from engines.native.block_reference import (
    BlockRows,
    block_product,
    half_sums,
    offsets_of,
    random_blocks,
    weights_of,
)
from engines.native.choosing import NativeChooser
from engines.native.instructions import attends_in_bf16, choose_instructions
from engines.native.int8_reference import Int8Rows, int8_slot_attention
from engines.native.reference import (
    HeadRows,
    RowsOfKv,
    WidthRows,
    candidate_logits,
    dequantize,
    mixed,
    nested_product,
    nested_swiglu,
    rms_norm,
    slot_attention,
    swiglu,
    width_product,
)
from engines.native.single import run_operator
from engines.ranking import likeliest
from engines.sequence import SamplingParams
from models.sources.gguf_blocks import Kind


def check_rows(library: Path) -> None:
    rng = np.random.default_rng(0)
    x, skip = rng.standard_normal((2, 2, 3, 80), np.float32)
    scale = rng.random((2, 3, 1), np.float32)
    gamma = rng.standard_normal(80, np.float32)
    inputs = {"x": x, "gamma": gamma, "skip": skip, "skip_row_scale": scale}
    q, row_scale, total = run_operator(library, "SkipRmsNormQuantize", inputs, 3, attributes={"epsilon": 1e-5})
    _expect("SkipRmsNormQuantize", dequantize(q, row_scale), rms_norm(total, gamma, 1e-5), row_scale)
    _expect("SkipRmsNormQuantize sum", total, x + skip * scale, np.float32(0))
    inputs = {"gate_up": np.concatenate([x, skip], -1), "row_scale": scale}
    q, row_scale = run_operator(library, "SwigluQuantize", inputs, 2, attributes={"hadamard_parts": 4})
    _expect("SwigluQuantize", dequantize(q, row_scale), mixed(swiglu(inputs["gate_up"] * scale), 4), row_scale)


def check_product(library: Path) -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(1, 256, (1, 3, 80)).astype(np.uint8)
    weight = rng.integers(-127, 128, (80, 50)).astype(np.int8)
    column_scale, row_scale = rng.random(50, np.float32), rng.random((1, 3, 1), np.float32)
    inputs: dict[str, np.ndarray | None] = {"q": q, "weight": weight, "column_scale": column_scale}
    inputs["row_scale"] = row_scale
    (product,) = run_operator(library, "QuantizedProduct", inputs, 1)
    exact = (q.astype(np.int64) - 128) @ weight.astype(np.int64)
    if not np.allclose(product, exact * column_scale * row_scale, rtol=1e-5, atol=1e-3):
        raise SystemExit("QuantizedProduct is wrong")


def check_widths(library: Path) -> None:
    case = WidthRows.random(rows=(1, 2, 5))
    (gate_up,) = run_operator(library, "NestedProduct", case.nested_inputs(), 1)
    expected = nested_product(case)
    is_run = ~np.isnan(expected)
    if not np.allclose(gate_up[is_run], expected[is_run], rtol=1e-5, atol=1e-3):
        raise SystemExit("NestedProduct is wrong")
    parts = np.array([8, 4, 4], np.int32)
    q, row_scale = run_operator(library, "NestedSwigluQuantize", case.swiglu_inputs(gate_up, parts), 2)
    for row, values in enumerate(nested_swiglu(case, gate_up)):
        own = dequantize(q[row, :, : values.shape[-1]], row_scale[row])
        _expect("NestedSwigluQuantize", own, mixed(values, int(parts[case.width_of_row[row]])), row_scale[row])
    (product,) = run_operator(library, "WidthProduct", case.width_inputs(q), 1)
    if not np.allclose(product, width_product(case, q), rtol=1e-5, atol=1e-3):
        raise SystemExit("WidthProduct is wrong")


def check_candidates(library: Path) -> None:
    case = HeadRows.random(num_rows=3)
    (logits,) = run_operator(library, "CandidateLogits", case.inputs(), 1, attributes=case.attributes())
    if not np.allclose(logits, candidate_logits(case), rtol=1e-5, atol=1e-3):
        raise SystemExit("CandidateLogits is wrong")


def check_blocks(library: Path) -> None:
    for kind in (Kind.Q4_1, Kind.Q8_0, Kind.Q4_K, Kind.Q6_K):
        blocks = random_blocks(kind, 40, 256)
        weights, offsets = weights_of(blocks)
        for num_rows in (1, 5):
            rows = BlockRows.random(num_rows, 256)
            inputs = rows.inputs() | {"weights": weights}
            (product,) = run_operator(library, "BlockProduct", inputs, 1, attributes=offsets_of(offsets))
            expected, magnitude = block_product(rows, blocks)
            if not np.all(np.abs(product - expected) <= 1e-5 * magnitude):
                raise SystemExit("BlockProduct is wrong")
    x = np.random.default_rng(0).standard_normal((1, 3, 64), np.float32)
    q, scale, sums = run_operator(library, "QuantizeBlocks", {"x": x}, 3)
    rows = BlockRows(q=q, scale=scale, sums=sums)
    _expect("QuantizeBlocks", rows.values(), x, np.repeat(scale, 32, -1))
    if not np.array_equal(sums, half_sums(q)):
        raise SystemExit("QuantizeBlocks adds up wrong")


def check_attention(library: Path, num_tokens: int) -> None:
    case = RowsOfKv.random(num_rows=2, num_tokens=num_tokens, past=(70, 3))
    q, row_scale, keys, _ = run_operator(library, "SlotAttention", case.inputs(), 4, attributes=case.attributes())
    is_bf16 = attends_in_bf16(library)
    expected, expected_keys, _ = slot_attention(case, is_bf16=is_bf16)
    _expect("SlotAttention", dequantize(q, row_scale), expected, row_scale, 5e-3 if is_bf16 else 1e-3)
    _expect("SlotAttention keys", np.nan_to_num(keys), np.nan_to_num(expected_keys), np.float32(1e-2))


def check_int8_attention(library: Path, num_tokens: int) -> None:
    rows = Int8Rows.of(RowsOfKv.random(num_rows=2, num_tokens=num_tokens, past=(70, 3)))
    q, row_scale, *_ = run_operator(library, "SlotAttention", rows.inputs(), 4, attributes=rows.case.attributes())
    expected, *_ = int8_slot_attention(rows, is_bf16=attends_in_bf16(library))
    _expect("SlotAttention in int8", dequantize(q, row_scale), expected, row_scale, 1e-2)


def check_choosing(library: Path) -> None:
    rng, chooser = np.random.default_rng(0), NativeChooser(library)
    row = rng.standard_normal(5001, np.float32) * 3
    for filters in ({}, {"top_p": 0.9}, {"min_p": 1e-9, "top_p": 0.99}, {"top_k": 700}):
        params = SamplingParams(max_tokens=1, **filters)
        for point in rng.random(20):
            if chooser.draw(row, params, float(point)) != draw(row, params, float(point)):
                raise SystemExit(f"a draw with {filters} is wrong")
    found, expected = chooser.likeliest(row, 20), likeliest(row, 20)
    if found.token_ids != expected.token_ids or abs(found.log_total - expected.log_total) > 1e-8:
        raise SystemExit("the likeliest tokens are wrong")
    if chooser.num_unsure > 1:
        raise SystemExit("tokens are not chosen at all")


def _expect(
    name: str, got: np.ndarray, expected: np.ndarray, row_scale: np.ndarray | np.float32, rounding: float = 1e-3
) -> None:
    # Quantisation may be off by half a step; the rest is float rounding.
    error = np.abs(got - expected) - row_scale * 0.5
    if not np.all(error < rounding):
        raise SystemExit(f"{name} is wrong by {error.max()}")


def run_trial(library: Path) -> None:
    check_rows(library)
    check_product(library)
    check_widths(library)
    check_candidates(library)
    check_blocks(library)
    check_attention(library, 1)
    check_attention(library, 5)
    check_int8_attention(library, 1)
    check_int8_attention(library, 5)
    check_choosing(library)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        choose_instructions(Path(sys.argv[1]), sys.argv[2])
    run_trial(Path(sys.argv[1]))
