"""Attention over KV in int8: right against numpy, and the same bits whatever runs beside a row or before it."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.native.instructions import attends_in_bf16
from engines.native.int8_reference import Int8Rows, dequantised, int8_slot_attention, kept_heads
from engines.native.reference import RowsOfKv, dequantize, slot_attention
from engines.native.single import operator_session, run_operator
from tests.engines.native.comparing import assert_quantised, assert_same_bits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native operators are built on Linux")

Arrays = list[Any]


def attend(library: Path, rows: Int8Rows, num_threads: int = 2) -> Arrays:
    """Attended rows, their scales, and both caches in the layout of `Int8Rows`."""
    outputs = run_operator(
        library, "SlotAttention", rows.inputs(), 4, attributes=rows.case.attributes(), num_threads=num_threads
    )
    return [*outputs[:2], *unpacked(rows, *outputs[2:])]


def unpacked(rows: Int8Rows, values: Any, scales: Any) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    return values.view(np.int8).reshape(rows.values.shape), scales.reshape(rows.scales.shape)


def random_rows(**changes: Any) -> Int8Rows:
    return Int8Rows.of(RowsOfKv.random(**changes))


@pytest.mark.parametrize(
    "rows",
    [
        random_rows(num_rows=4, num_tokens=1, past=(0, 63, 64, 200)),
        random_rows(num_rows=2, num_tokens=1, past=(130, 7), window=20),
        random_rows(
            num_rows=1, num_tokens=1, past=(239,), head_dim=80, num_heads=14, num_positions=240, has_extras=True
        ),
        random_rows(num_rows=1, num_tokens=37, past=(0,)),
        random_rows(num_rows=1, num_tokens=70, past=(100,), has_extras=True),
        random_rows(num_rows=2, num_tokens=5, past=(3, 150), num_heads=2, head_dim=128),
        random_rows(num_rows=1, num_tokens=9, past=(62,), num_heads=3, num_kv_heads=1, head_dim=80, num_positions=240),
        random_rows(num_rows=1, num_tokens=130, past=(90,), window=33),
    ],
    ids=[
        "ragged",
        "ragged-window",
        "extras",
        "prompt",
        "prompt-extras",
        "ragged-prompts",
        "half-vector",
        "prompt-window",
    ],
)
def test_attention_over_int8_equals_the_reference(library: Path, rows: Int8Rows) -> None:
    q, row_scale, values, scales = attend(library, rows)
    is_bf16 = attends_in_bf16(library)
    attended, expected_keys, expected_values = int8_slot_attention(rows, is_bf16=is_bf16)
    # Rotated keys are off by float rounding, so that a few may lie one step aside: they count as one in the sums.
    assert_quantised(q, row_scale, attended, 1e-2 if is_bf16 else 2e-3)
    written = ~np.isnan(expected_keys)
    cached = dequantised(values, scales)
    steps = np.broadcast_to(scales[..., None], values.shape).astype("f")
    assert (np.abs(cached[..., 0, :] - expected_keys)[written] <= 1.01 * steps[..., 0, :][written]).all()
    assert (cached[..., 0, :] == expected_keys)[written].mean() > 0.9
    near = (np.abs(cached[..., 1, :] - expected_values)[written] <= 1.01 * steps[..., 1, :][written]).all()
    assert near
    if rows.case.bias is None:
        np.testing.assert_array_equal(cached[..., 1, :][written], expected_values[written])
    for row, past in enumerate(rows.case.past):
        end = past + rows.case.num_tokens
        for got, before in ((values, rows.values), (scales, rows.scales)):
            assert got[row, :, :past].tobytes() == before[row, :, :past].tobytes()
            assert got[row, :, end:].tobytes() == before[row, :, end:].tobytes()


def test_attention_over_int8_is_close_to_that_over_halves(library: Path) -> None:
    case = RowsOfKv.random(num_rows=1, num_tokens=1, past=(200,))
    q, row_scale, *_ = attend(library, Int8Rows.of(case))
    expected = slot_attention(case)[0]
    error = np.abs(dequantize(q, row_scale) - expected).max() / np.abs(expected).max()
    assert error < 0.03


@pytest.mark.parametrize("magnitude", [0.0, 1e-9, 1e-5, 1e6, 1e9])
def test_keys_of_any_size_are_kept_as_well_as_halves_can(library: Path, magnitude: float) -> None:
    """Beyond the range of a half times 127 they become the largest there is, and what is below it zero."""
    case = RowsOfKv.random(num_rows=1, num_tokens=2, past=(0,))
    case.qkv *= np.float32(magnitude)
    *_, values, scales = attend(library, Int8Rows.of(case))
    assert np.isfinite(scales[:, :, :2]).all()
    new = (case.qkv * case.row_scale)[0].reshape(2, -1, case.head_dim)[:, -case.num_kv_heads :].swapaxes(0, 1)
    got = dequantised(values, scales)[0, :, :2, 1]
    np.testing.assert_array_equal(got, kept_heads(np.clip(new, -65504 * 127, 65504 * 127)))


def one_row(rows: Int8Rows, row: int) -> Int8Rows:
    only, case = slice(row, row + 1), rows.case
    alone = replace(case, qkv=case.qkv[only], row_scale=case.row_scale[only], past=case.past[only])
    return Int8Rows(case=alone, values=rows.values[only], scales=rows.scales[only])


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_attention_over_int8_of_a_row_ignores_its_neighbours(library: Path, num_tokens: int) -> None:
    past = tuple(int(length) for length in np.random.default_rng(3).integers(0, 240, 32))
    rows = random_rows(num_rows=32, num_tokens=num_tokens, past=past)
    together = attend(library, rows)
    for row in range(32):
        assert_same_bits([part[row : row + 1] for part in together], attend(library, one_row(rows, row)))


@pytest.mark.parametrize(("num_tokens", "past"), [(1, (1000, 5)), (60, (900, 0)), (3, (900,)), (20, (900,))])
def test_attention_over_int8_ignores_the_number_of_threads(
    library: Path, num_tokens: int, past: tuple[int, ...]
) -> None:
    rows = random_rows(num_rows=len(past), num_tokens=num_tokens, past=past, num_positions=1024)
    first = attend(library, rows, num_threads=1)
    for num_threads in (2, 3):
        assert_same_bits(attend(library, rows, num_threads=num_threads), first)


@pytest.mark.parametrize("window", [-1, 50])
def test_a_prompt_in_pieces_gives_the_same_bits_in_int8(library: Path, window: int) -> None:
    whole = random_rows(num_rows=1, num_tokens=150, past=(20,), window=window)
    expected = attend(library, whole)
    cuts, rows, parts = (0, 2, 7, 18, 64, 67, 150), whole, []
    for start, end in pairwise(cuts):
        case = whole.case
        piece = replace(
            case,
            qkv=case.qkv[:, start:end],
            row_scale=case.row_scale[:, start:end],
            past=(case.past[0] + start,),
        )
        q, scale, values, scales = attend(library, replace(rows, case=piece))
        rows = replace(rows, values=values, scales=scales)
        parts.append((q, scale))
    joined = [np.concatenate(part, 1) for part in zip(*parts, strict=True)]
    assert_same_bits([*joined, rows.values, rows.scales], expected)


@pytest.mark.parametrize("past", [0, 63, 150])
def test_a_single_token_in_int8_agrees_with_the_last_one_of_a_prompt(library: Path, past: int) -> None:
    whole = random_rows(num_rows=1, num_tokens=40, past=(past,))
    case = whole.case
    before = replace(case, qkv=case.qkv[:, :39], row_scale=case.row_scale[:, :39])
    *_, values, scales = attend(library, replace(whole, case=before))
    last = replace(case, qkv=case.qkv[:, 39:], row_scale=case.row_scale[:, 39:], past=(past + 39,))
    single = attend(library, Int8Rows(case=last, values=values, scales=scales))
    prompt = attend(library, whole)
    assert_same_bits(single[2:], prompt[2:])
    attended = dequantize(prompt[0][:, 39:], prompt[1][:, 39:])
    steps = np.abs(dequantize(single[0], single[1]) - attended) / single[1]
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 0.02


SEQUENCES = ((3, 0, 40), (1, 4, 17), (1, 5, 200), (1, 2, 0), (20, 1, 90), (2, 3, 1))
"""Tokens, slot and last position of each; the second and third lie in neighbouring slots."""


@pytest.mark.parametrize(("operator", "num_outputs"), [("SlotAttention", 4), ("BlockSlotAttention", 5)])
def test_sequences_side_by_side_in_int8_have_the_bits_of_each_alone(
    library: Path, operator: str, num_outputs: int
) -> None:
    past = [0] * 6
    for num_tokens, slot, last in SEQUENCES:
        past[slot] = last + 1 - num_tokens
    num_rows = sum(num_tokens for num_tokens, _, _ in SEQUENCES)
    slots = random_rows(num_rows=6, num_tokens=1, past=tuple(past), has_extras=True)
    rows = RowsOfKv.random(num_rows=num_rows, num_tokens=1, past=(0,) * num_rows, seed=1)
    attributes = slots.case.attributes()
    inputs = {**slots.inputs(), "qkv": rows.qkv, "qkv_row_scale": rows.row_scale}
    inputs["seqlens_k"] = np.array([-len(SEQUENCES), *sum(SEQUENCES, ())], np.int32)
    *together, values, scales = run_operator(library, operator, inputs, num_outputs, attributes=attributes)
    first = 0
    for num_tokens, slot, last in SEQUENCES:
        part, only = slice(first, first + num_tokens), slice(slot, slot + 1)
        alone = {
            **replace(slots, values=slots.values[only], scales=slots.scales[only]).inputs(),
            "qkv": rows.qkv[part].reshape(1, num_tokens, -1),
            "qkv_row_scale": rows.row_scale[part].reshape(1, num_tokens, 1),
            "seqlens_k": np.array([last], np.int32),
        }
        *parts, own_values, own_scales = run_operator(library, operator, alone, num_outputs, attributes=attributes)
        assert_same_bits([one[part, 0] for one in together], [one[0] for one in parts])
        assert_same_bits([values[only], scales[only]], [own_values, own_scales])
        first += num_tokens


def test_int8_is_written_in_place_when_past_and_present_are_bound_to_one_memory(library: Path) -> None:
    rows = random_rows(num_rows=2, num_tokens=1, past=(3, 90))
    expected = attend(library, rows)
    inputs = rows.inputs()
    session = operator_session(library, "SlotAttention", inputs, 4, attributes=rows.case.attributes())
    binding = session.io_binding()
    for name, value in inputs.items():
        if value is not None:
            binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
    q, row_scale = np.empty_like(expected[0]), np.empty_like(expected[1])
    values, scales = inputs["past_k"], inputs["past_v"]
    assert values is not None
    assert scales is not None
    for name, value in {"o0": q, "o1": row_scale, "o2": values, "o3": scales}.items():
        binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
    session.run_with_iobinding(binding)
    assert_same_bits([q, row_scale, *unpacked(rows, values, scales)], expected)


@pytest.mark.parametrize("shape", [(1, 2, 7, 64), (1, 2, 16, 32), (1, 1, 8, 64), (2, 2, 8, 64)])
def test_scales_of_another_shape_than_two_for_each_position_are_refused(library: Path, shape: tuple[int, ...]) -> None:
    rows = random_rows(num_rows=1, num_tokens=1, past=(3,))
    inputs = rows.inputs() | {"past_v": np.zeros(shape, np.float16)}
    with pytest.raises(Exception, match="two values for each position"):
        run_operator(library, "SlotAttention", inputs, 4, attributes=rows.case.attributes())
