"""The compiled operators: right against numpy and stock operators, and bit-identical whatever runs beside them."""

import errno
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper

from engines.native import build, library_path
from engines.native.build import BuildError, build_library
from engines.native.instructions import attends_in_bf16, choose_instructions, instructions_of
from engines.native.reference import (
    HeadRows,
    RowsOfKv,
    candidate_logits,
    candidates_of,
    dequantize,
    exact_logits,
    mixed,
    preview_logits,
    rms_norm,
    slot_attention,
    swiglu,
)
from engines.native.single import operator_session, run_operator
from tests.disk_faults import refuse_writes
from tests.engines.native.comparing import assert_quantised, assert_same_bits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native operators are built on Linux")

Arrays = list[Any]


def test_compiling_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(command: list[str], scratch: Path) -> None:
        raise BuildError(f"{len(caplog.records)} lines before")

    monkeypatch.setattr(build, "find_compiler", lambda: "cc")
    monkeypatch.setattr(build, "_run", refuse)
    with caplog.at_level(logging.INFO), pytest.raises(BuildError, match="1 lines before"):
        build_library(tmp_path)
    assert "once on this machine, takes some seconds" in caplog.text


def test_compiling_that_fails_leaves_nothing_and_names_file_and_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's own temporary files are left where it is killed; so is the scratch folder of an earlier run."""
    compiler, temporary = tmp_path / "cc", tmp_path / "temporary"
    compiler.write_text('#!/bin/sh\necho half > "${TMPDIR:-/tmp}/cc-left"; echo No space left on device >&2; exit 1\n')
    compiler.chmod(0o755)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(build, "find_compiler", lambda: str(compiler))
    folder = tmp_path / "cache"
    for name, age_s in (("native-old", 7200), ("native-running", 60)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (time.time() - age_s,) * 2)
    with pytest.raises(BuildError) as caught:
        build_library(folder)
    for part in (str(folder), "No space left on device", "FENHE_CACHE"):
        assert part in str(caught.value)
    assert [file.name for file in folder.iterdir()] == ["native-running"]
    assert list(temporary.iterdir()) == []


def attend(library: Path, case: RowsOfKv, num_threads: int = 2) -> Arrays:
    return run_operator(
        library, "SlotAttention", case.inputs(), 4, attributes=case.attributes(), num_threads=num_threads
    )


@pytest.mark.parametrize(
    "case",
    [
        RowsOfKv.random(num_rows=4, num_tokens=1, past=(0, 63, 64, 200)),
        RowsOfKv.random(num_rows=2, num_tokens=1, past=(130, 7), window=20),
        RowsOfKv.random(num_rows=1, num_tokens=1, past=(255,), head_dim=80, num_heads=14, has_extras=True),
        RowsOfKv.random(num_rows=1, num_tokens=37, past=(0,)),
        RowsOfKv.random(num_rows=1, num_tokens=70, past=(100,), has_extras=True),
        RowsOfKv.random(num_rows=2, num_tokens=5, past=(3, 150), num_heads=2, head_dim=128),
        RowsOfKv.random(num_rows=1, num_tokens=9, past=(62,), num_heads=3, num_kv_heads=1, head_dim=80),
        RowsOfKv.random(num_rows=1, num_tokens=130, past=(90,), window=33),
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
def test_attention_equals_the_reference(library: Path, case: RowsOfKv) -> None:
    q, row_scale, keys, values = attend(library, case)
    is_bf16 = attends_in_bf16(library)
    attended, expected_keys, expected_values = slot_attention(case, is_bf16=is_bf16)
    assert_quantised(q, row_scale, attended, 5e-3 if is_bf16 else 1e-3)
    np.testing.assert_allclose(keys.astype("f"), expected_keys.astype("f"), rtol=2e-3, atol=1e-5)
    np.testing.assert_array_equal(values, expected_values)


@pytest.mark.parametrize("past", [0, 1, 190])
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_attention_agrees_with_stock(library: Path, past: int, num_tokens: int) -> None:
    case = RowsOfKv.random(num_rows=1, num_tokens=num_tokens, past=(past,))
    case.keys, case.values = np.nan_to_num(case.keys), np.nan_to_num(case.values)
    q, row_scale, *_ = attend(library, case)
    assert_quantised(q, row_scale, stock_attention(case), 5e-2 if attends_in_bf16(library) else 1e-3)


def stock_attention(case: RowsOfKv) -> npt.NDArray[np.float32]:
    names = ["qkv", "", "", "past_k", "past_v", "seqlens_k", "total", "cos", "sin"]
    attributes = {"num_heads": case.num_heads, "kv_num_heads": case.num_kv_heads, "do_rotary": 1}
    node = helper.make_node("GroupQueryAttention", names, ["out", "k", "v"], domain="com.microsoft")
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    feeds: dict[str, Any] = {
        "qkv": case.qkv * case.row_scale,
        "past_k": case.keys.astype(np.float32),
        "past_v": case.values.astype(np.float32),
        "seqlens_k": case.inputs()["seqlens_k"],
        "total": np.array(case.past[0] + case.num_tokens, np.int32),
        "cos": case.cos,
        "sin": case.sin,
    }
    kinds = {"seqlens_k": TensorProto.INT32, "total": TensorProto.INT32}
    infos = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), np.shape(value))
        for name, value in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("out", "k", "v")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "stock", infos, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["out"], feeds)[0])


def one_row(case: RowsOfKv, row: int) -> RowsOfKv:
    only = slice(row, row + 1)
    return replace(
        case,
        qkv=case.qkv[only],
        row_scale=case.row_scale[only],
        keys=case.keys[only],
        values=case.values[only],
        past=case.past[only],
    )


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_attention_of_a_row_ignores_its_neighbours(library: Path, num_tokens: int) -> None:
    past = tuple(int(length) for length in np.random.default_rng(3).integers(0, 240, 32))
    case = RowsOfKv.random(num_rows=32, num_tokens=num_tokens, past=past)
    together = attend(library, case)
    for row in range(32):
        assert_same_bits([part[row : row + 1] for part in together], attend(library, one_row(case, row)))


@pytest.mark.parametrize(("num_tokens", "past"), [(1, (1000, 5)), (60, (900, 0)), (3, (900,)), (20, (900,))])
def test_attention_ignores_the_number_of_threads(library: Path, num_tokens: int, past: tuple[int, ...]) -> None:
    case = RowsOfKv.random(num_rows=len(past), num_tokens=num_tokens, past=past, num_positions=1024)
    first = attend(library, case, num_threads=1)
    for num_threads in (2, 3):
        assert_same_bits(attend(library, case, num_threads=num_threads), first)


@pytest.mark.parametrize("past", [0, 63, 150])
def test_a_single_token_agrees_with_the_last_one_of_a_prompt(library: Path, past: int) -> None:
    """What was generated is a prompt when its sequence was preempted. Only sums are in another order."""
    whole = RowsOfKv.random(num_rows=1, num_tokens=40, past=(past,))
    *_, keys, values = attend(library, replace(whole, qkv=whole.qkv[:, :39], row_scale=whole.row_scale[:, :39]))
    last = replace(whole, qkv=whole.qkv[:, 39:], row_scale=whole.row_scale[:, 39:], past=(past + 39,))
    single, prompt = attend(library, replace(last, keys=keys, values=values)), attend(library, whole)
    assert_same_bits(single[2:], prompt[2:])
    attended = dequantize(prompt[0][:, 39:], prompt[1][:, 39:])
    steps = np.abs(dequantize(single[0], single[1]) - attended) / single[1]
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 0.02


@pytest.mark.parametrize("window", [-1, 50])
def test_a_prompt_in_pieces_gives_the_same_bits(library: Path, window: int) -> None:
    whole = RowsOfKv.random(num_rows=1, num_tokens=150, past=(20,), window=window)
    expected = attend(library, whole)
    cuts, keys, values, parts = (0, 2, 7, 18, 64, 67, 150), whole.keys, whole.values, []
    for start, end in pairwise(cuts):
        qkv, row_scale = whole.qkv[:, start:end], whole.row_scale[:, start:end]
        past = (whole.past[0] + start,)
        piece = replace(whole, qkv=qkv, row_scale=row_scale, keys=keys, values=values, past=past)
        q, scale, keys, values = attend(library, piece)
        parts.append((q, scale))
    joined = [np.concatenate(part, 1) for part in zip(*parts, strict=True)]
    assert_same_bits([*joined, keys, values], expected)


SEQUENCES = ((3, 0, 40), (1, 4, 17), (1, 5, 200), (1, 2, 0), (20, 1, 90), (2, 3, 1))
"""Tokens, slot and last position of each; the second and third lie in neighbouring slots."""


def side_by_side(operator: str, num_outputs: int, library: Path, sequences: tuple[tuple[int, int, int], ...]) -> None:
    """Sequences of any lengths in one call have the bits of each alone, and write nothing but their own tokens."""
    past = [0] * 6
    for num_tokens, slot, last in sequences:
        past[slot] = last + 1 - num_tokens
    num_rows = sum(num_tokens for num_tokens, _, _ in sequences)
    case = RowsOfKv.random(num_rows=6, num_tokens=1, past=tuple(past), has_extras=True)
    rows = RowsOfKv.random(num_rows=num_rows, num_tokens=1, past=(0,) * num_rows, seed=1)
    inputs = {**case.inputs(), "qkv": rows.qkv, "qkv_row_scale": rows.row_scale}
    inputs["seqlens_k"] = np.array([-len(sequences), *sum(sequences, ())], np.int32)
    *together, keys, values = run_operator(library, operator, inputs, num_outputs, attributes=case.attributes())
    expected_keys, expected_values = case.keys.copy(), case.values.copy()
    first = 0
    for num_tokens, slot, last in sequences:
        part = slice(first, first + num_tokens)
        alone = {
            **case.inputs(),
            "qkv": rows.qkv[part].reshape(1, num_tokens, -1),
            "qkv_row_scale": rows.row_scale[part].reshape(1, num_tokens, 1),
            "past_k": case.keys[slot : slot + 1],
            "past_v": case.values[slot : slot + 1],
            "seqlens_k": np.array([last], np.int32),
        }
        *parts, own_keys, own_values = run_operator(library, operator, alone, num_outputs, attributes=case.attributes())
        assert_same_bits([one[part, 0] for one in together], [one[0] for one in parts])
        expected_keys[slot], expected_values[slot] = own_keys[0], own_values[0]
        first += num_tokens
    assert_same_bits([keys, values], [expected_keys, expected_values])


@pytest.mark.parametrize(("operator", "num_outputs"), [("SlotAttention", 4), ("BlockSlotAttention", 5)])
@pytest.mark.parametrize("order", [1, -1])
def test_sequences_side_by_side_have_the_bits_of_each_alone(
    library: Path, operator: str, num_outputs: int, order: int
) -> None:
    side_by_side(operator, num_outputs, library, SEQUENCES[::order])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([-2, 1, 0, 3], "three numbers each"),
        ([-(2**31), 1, 0, 3], "three numbers each"),
        ([-1, 2, 0, 3, 1], "three numbers each"),
        ([-1, 3, 0, 3], "another number of tokens"),
        ([-2, 2, 0, 3, 0, 1, 3], "must have tokens"),
        ([-1, 2, 0, 0], r"past \+ tokens - 1"),
        ([-1, 2, 2, 3], "slot lies beyond"),
        ([-1, 2, -1, 3], "slot lies beyond"),
        ([-1, 2, 0, 256], "last position lies beyond"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(library: Path, numbers: list[int], message: str) -> None:
    case = RowsOfKv.random(num_rows=2, num_tokens=1, past=(3, 3))
    inputs = {**case.inputs(), "seqlens_k": np.array(numbers, np.int32)}
    with pytest.raises(Exception, match=message):
        run_operator(library, "SlotAttention", inputs, 4, attributes=case.attributes())
    whole = RowsOfKv.random(num_rows=1, num_tokens=2, past=(3,))
    with pytest.raises(Exception, match="sequences must be"):
        run_operator(
            library,
            "SlotAttention",
            {**whole.inputs(), "seqlens_k": np.array([-1, 2, 0, 4], np.int32)},
            4,
            attributes=whole.attributes(),
        )


def test_attention_writes_in_place_when_past_and_present_are_bound_to_one_memory(library: Path) -> None:
    case = RowsOfKv.random(num_rows=2, num_tokens=1, past=(3, 90))
    expected = attend(library, case)
    session = operator_session(library, "SlotAttention", case.inputs(), 4, attributes=case.attributes())
    binding = session.io_binding()
    for name, value in case.inputs().items():
        if value is not None:
            binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
    q, row_scale = np.empty_like(expected[0]), np.empty_like(expected[1])
    for name, value in {"o0": q, "o1": row_scale, "o2": case.keys, "o3": case.values}.items():
        binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
    session.run_with_iobinding(binding)
    assert_same_bits([q, row_scale, case.keys, case.values], expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seqlens_k", np.array([256], np.int32), "beyond the positions of past_k"),
        ("seqlens_k", np.array([-1], np.int32), "a past below 0"),
        ("seqlens_k", np.array([3, 4], np.int32), r"seqlens_k must be \[batch\]"),
        ("cos", np.zeros((256, 16), np.float32), "cos and sin"),
        ("qkv", np.zeros((1, 1, 65), np.float32), "head_dim wide"),
        ("past_v", np.zeros((1, 2, 128, 64), np.float16), "one shape"),
        ("qkv_bias", np.zeros(64, np.float32), "qkv_bias"),
    ],
)
def test_attention_refuses_what_does_not_fit(library: Path, name: str, value: Any, message: str) -> None:
    case = RowsOfKv.random(num_rows=1, num_tokens=1, past=(3,))
    inputs = {**case.inputs(), name: value}
    session = operator_session(library, "SlotAttention", inputs, 4, attributes=case.attributes())
    with pytest.raises(Exception, match=message):
        session.run(None, {key: array for key, array in inputs.items() if array is not None})


def test_attention_refuses_heads_that_do_not_divide(library: Path) -> None:
    case = RowsOfKv.random(num_rows=1, num_tokens=1, past=(3,))
    with pytest.raises(Exception, match="multiple"):
        operator_session(library, "SlotAttention", case.inputs(), 4, attributes={**case.attributes(), "num_heads": 5})


def random_rows(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("width", [576, 37])
@pytest.mark.parametrize("has_scale", [True, False])
def test_skip_rms_norm_quantize_equals_the_reference(library: Path, width: int, has_scale: bool) -> None:
    x, skip, gamma = random_rows(2, 40, width), random_rows(2, 40, width) * 2, random_rows(width)
    scale = np.abs(random_rows(2, 40, 1)) if has_scale else None
    inputs = {"x": x, "gamma": gamma, "skip": skip, "skip_row_scale": scale}
    q, row_scale, total = run_operator(library, "SkipRmsNormQuantize", inputs, 3, attributes={"epsilon": 1e-5})
    expected = x + skip * (scale if scale is not None else 1)
    np.testing.assert_allclose(total, expected, atol=1e-6)
    assert_quantised(q, row_scale, rms_norm(expected, gamma, 1e-5))


def test_skip_rms_norm_quantize_without_skip_and_sum(library: Path) -> None:
    x, gamma = random_rows(1, 3, 64), random_rows(64)
    q, row_scale = run_operator(
        library, "SkipRmsNormQuantize", {"x": x, "gamma": gamma}, 2, attributes={"epsilon": 1e-5}
    )
    assert_quantised(q, row_scale, rms_norm(x, gamma, 1e-5))


def test_skip_rms_norm_and_scale_add_equal_the_reference(library: Path) -> None:
    x, skip, gamma, scale = random_rows(3, 100), random_rows(3, 100) + 1, random_rows(100), random_rows(3, 1)
    inputs = {"x": x, "gamma": gamma, "skip": skip, "skip_row_scale": scale}
    for num_outputs in (1, 2):
        normed, *total = run_operator(library, "SkipRmsNorm", inputs, num_outputs, attributes={"epsilon": 1e-5})
        np.testing.assert_allclose(normed, rms_norm(x + skip * scale, gamma, 1e-5), rtol=1e-4, atol=1e-5)
        assert all(np.allclose(part, x + skip * scale, atol=1e-6) for part in total)
    (added,) = run_operator(library, "ScaleAdd", {"x": x, "skip": skip, "skip_row_scale": scale}, 1)
    np.testing.assert_allclose(added, x + skip * scale, atol=1e-6)


def test_sums_may_take_the_memory_of_their_input(library: Path) -> None:
    x, gamma = random_rows(4, 96), random_rows(96)
    norms = [
        helper.make_node("SkipRmsNorm", [f"s{i}", "gamma", f"s{i}"], [f"n{i}", f"s{i + 1}"], domain="fenhe")
        for i in range(3)
    ]
    for node in norms:
        node.attribute.append(helper.make_attribute("epsilon", 1e-5))
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["s0"]), *norms],
        "chain",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "gamma")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("n0", "n2", "s3")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("fenhe", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    first, last, total = session.run(None, {"x": x, "gamma": gamma})
    np.testing.assert_allclose(first, rms_norm(-2 * x, gamma, 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last, rms_norm(-8 * x, gamma, 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total, -8 * x, rtol=1e-5)


@pytest.mark.parametrize(("width", "parts"), [(1536, 1), (1536, 64), (21, 1), (88, 8)])
def test_swiglu_quantize_equals_the_reference(library: Path, width: int, parts: int) -> None:
    gate_up, scale = random_rows(1, 33, 2 * width) * 8, random_rows(1, 33, 1)
    inputs = {"gate_up": gate_up, "row_scale": scale}
    q, row_scale = run_operator(library, "SwigluQuantize", inputs, 2, attributes={"hadamard_parts": parts})
    assert_quantised(q, row_scale, mixed(swiglu(gate_up * scale), parts))


def test_swiglu_is_finite_far_from_zero(library: Path) -> None:
    gate = np.array([[-1e4, -90, 0, 90, 1e4]], np.float32)
    gate_up = np.concatenate([gate, np.ones_like(gate)], -1)
    inputs = {"gate_up": gate_up, "row_scale": np.ones((1, 1), np.float32)}
    q, row_scale = run_operator(library, "SwigluQuantize", inputs, 2, attributes={"hadamard_parts": 1})
    assert_quantised(q, row_scale, np.maximum(gate, 0))


def test_quantize_rows_keeps_zero_and_tiny_rows_finite(library: Path) -> None:
    x = random_rows(3, 48)
    x[1], x[2] = 0, 1e-40
    q, row_scale = run_operator(library, "QuantizeRows", {"x": x}, 2)
    assert_quantised(q[:1], row_scale[:1], x[:1])
    assert (q[1:] == 128).all()
    assert (row_scale[1:] == 0).all()


def test_row_operators_ignore_neighbours_and_threads(library: Path) -> None:
    inputs = {"gate_up": random_rows(64, 3072), "row_scale": random_rows(64, 1)}
    attributes = {"hadamard_parts": 64}
    together = run_operator(library, "SwigluQuantize", inputs, 2, attributes=attributes, num_threads=2)
    for row in (0, 17, 63):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        single = run_operator(library, "SwigluQuantize", alone, 2, attributes=attributes, num_threads=1)
        assert_same_bits([part[row : row + 1] for part in together], single)


@pytest.mark.parametrize(("num_rows", "depth", "width"), [(1, 576, 3072), (27, 96, 50), (7, 1536, 576)])
def test_quantized_product_is_exact_for_any_threads(library: Path, num_rows: int, depth: int, width: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(0, 256, (num_rows, depth)).astype(np.uint8)
    weight = rng.integers(-128, 128, (depth, width)).astype(np.int8)
    scale, row_scale = rng.random(width, np.float32), rng.random((num_rows, 1), np.float32)
    inputs: dict[str, np.ndarray | None] = {
        "q": q,
        "weight": weight,
        "column_scale": scale,
        "row_scale": row_scale,
    }
    expected = ((q.astype(np.int64) - 128) @ weight.astype(np.int64)).astype(np.float32) * scale * row_scale
    for num_threads in (1, 2):
        (got,) = run_operator(library, "QuantizedProduct", inputs, 1, num_threads=num_threads)
        assert_same_bits([got], [expected])


AVX2, AVX512 = "sse2 avx2 fma bmi2", "sse2 avx2 fma bmi2 avx512f avx512bw avx512dq avx512vl avx512cd"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        (f"{AVX512} avx512_vnni avx512_bf16", "bf16"),
        (f"{AVX512} avx512_vnni", "vnni"),
        (f"{AVX512} avx512_bf16", "avx512"),
        (AVX512, "avx512"),
        (f"{AVX2} avx512f avx512_vnni avx_vnni", "avx2"),
        (AVX2, "avx2"),
        ("sse2 avx2 fma", "generic"),
        (None, None),
    ],
)
def test_own_variant_is_the_best_the_processor_has(tmp_path: Path, flags: str | None, variant: str | None) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert build.own_variant(cpuinfo) is None
    cpuinfo.write_text("processor\t: 0\n" + ("" if flags is None else f"flags\t\t: {flags}\nbugs\t\t: x\n"))
    assert build.own_variant(cpuinfo) == variant


def test_own_variant_is_what_a_library_of_all_chooses(portable_library: Path) -> None:
    """In a process of its own: in this one the tests choose."""
    imports = "import sys, pathlib; from engines.native.instructions import instructions_of"
    program = f"{imports}; print(instructions_of(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", program, str(portable_library)]
    chosen = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert chosen == (build.own_variant() or "generic")


def test_instructions_are_those_that_were_chosen(library: Path, request: pytest.FixtureRequest) -> None:
    chosen = instructions_of(library)
    assert chosen == request.node.callspec.params["library"]
    with pytest.raises(ValueError, match="no operators for 'avx9'"):
        choose_instructions(library, "avx9")
    assert instructions_of(library) == chosen


def test_a_library_of_one_instruction_set_has_no_other(native_library: Path) -> None:
    for name in build.variants():
        if name != build.own_variant():
            with pytest.raises(ValueError, match="no operators for"):
                choose_instructions(native_library, name)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="Debian's gcc-aarch64-linux-gnu is not here")
def test_operators_compile_for_aarch64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(build, "find_compiler", lambda: "aarch64-linux-gnu-gcc")
    library = build_library(tmp_path)
    assert library.name == build.library_name()
    elf_machine = int.from_bytes(library.read_bytes()[18:20], "little")
    assert elf_machine == 183


def test_library_of_another_processor_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache may travel from one machine to another; a library for all processors serves on each."""
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(build, "own_variant", lambda: "avx2")
    (tmp_path / build.library_name("vnni")).touch()
    assert build.find_library(tmp_path) is None
    (tmp_path / build.library_name("avx2")).touch()
    assert build.find_library(tmp_path) == tmp_path / build.library_name("avx2")
    (tmp_path / build.library_name()).touch()
    assert build.find_library(tmp_path) == tmp_path / build.library_name()


def test_library_path_builds_once_and_remembers_the_trial(
    native_library: Path, operators_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture compiled and tried it, or another process of this run did."""
    assert native_library.is_file()
    library_path.cache_clear()
    monkeypatch.setattr(build, "find_compiler", lambda: pytest.fail("compiled again"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("tried again"))
    assert library_path(operators_folder) == native_library
    library_path.cache_clear()


def test_library_path_without_a_compiler_is_none_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    library_path.cache_clear()
    with caplog.at_level(logging.INFO):
        assert library_path(tmp_path / "cache") is None
    assert "no C compiler" in caplog.text
    library_path.cache_clear()


def test_library_path_in_a_read_only_cache_is_none_and_says_why_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setattr(build, "find_compiler", lambda: "cc")
    library_path.cache_clear()
    with caplog.at_level(logging.INFO), refuse_writes(tmp_path):
        assert library_path(tmp_path / "cache") is None
    (line,) = [record.getMessage() for record in caplog.records if "unavailable" in record.getMessage()]
    for part in (str(tmp_path / "cache"), "Read-only", "FENHE_CACHE", "python -m engines.native"):
        assert part in line
    library_path.cache_clear()


def test_library_path_in_a_read_only_cache_is_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The trial's success cannot be kept: said in one line."""
    library = tmp_path / build.library_name()
    library.touch()
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    library_path.cache_clear()
    with caplog.at_level(logging.INFO), refuse_writes(tmp_path):
        assert library_path(tmp_path / "cache") == library
    assert len([record for record in caplog.records if "not remembered" in record.getMessage()]) == 1
    library_path.cache_clear()


def test_a_library_that_fails_its_trial_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / build.library_name()
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    library_path.cache_clear()
    assert library_path(tmp_path / "cache") is None
    assert "rejected" in caplog.text
    library_path.cache_clear()


@dataclass(slots=True)
class Trials:
    """A cache in which `compiled` libraries pass their trial unless they are damaged."""

    folder: Path
    done: list[str] = field(default_factory=list)

    def compile(self, folder: Path, only: str | None) -> Path:
        self.done.append("compile")
        library = folder / build.library_name(only)
        folder.mkdir(exist_ok=True)
        library.write_bytes(b"whole")
        return library

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.done.append("trial")
        is_good = Path(command[-1]).read_bytes() in (b"whole", b"other")
        return subprocess.CompletedProcess([], 0 if is_good else 1, stderr="wrong")

    @property
    def library(self) -> Path:
        return self.folder / build.library_name(build.own_variant())

    def start(self) -> tuple[Path | None, list[str]]:
        """What the next process uses, and what it does for it."""
        self.done.clear()
        library_path.cache_clear()
        try:
            return library_path(self.folder), list(self.done)
        finally:
            library_path.cache_clear()


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    trials = Trials(tmp_path / "cache")
    (tmp_path / "package").mkdir()
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr("engines.native.build_library", trials.compile)
    monkeypatch.setattr("subprocess.run", trials.run)
    return trials


def test_a_library_is_tried_once(trials: Trials) -> None:
    assert trials.start() == (trials.library, ["compile", "trial"])
    assert trials.start() == (trials.library, [])


def test_a_library_that_was_damaged_is_compiled_again(trials: Trials, caplog: pytest.LogCaptureFixture) -> None:
    """Whether or not the trial would notice."""
    trials.start()
    trials.library.write_bytes(b"other")
    assert trials.start() == (trials.library, ["compile"])
    assert trials.library.read_bytes() == b"whole"
    assert "operators damaged" in caplog.text
    assert trials.start() == (trials.library, [])


def test_a_damaged_library_of_all_processors_is_compiled_again_in_its_place(trials: Trials) -> None:
    library = trials.compile(trials.folder, None)
    assert trials.start() == (library, ["trial"])
    library.write_bytes(b"other")
    assert trials.start() == (library, ["compile"])
    assert trials.start() == (library, [])


def test_a_damaged_library_is_not_used_where_none_can_be_compiled(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, only: str | None) -> Path:
        raise BuildError("no C compiler")

    trials.start()
    trials.library.write_bytes(b"other")
    monkeypatch.setattr("engines.native.build_library", refuse)
    assert trials.start() == (None, [])


def test_another_library_that_came_with_the_package_is_tried(trials: Trials) -> None:
    trials.start()
    shipped = build.PACKAGE / build.library_name()
    shipped.write_bytes(b"other")
    assert trials.start() == (shipped, ["trial"])
    assert trials.start() == (shipped, [])


def test_a_library_that_fails_its_first_trial_is_not_compiled_again(trials: Trials) -> None:
    trials.folder.mkdir()
    trials.library.write_bytes(b"damaged")
    assert trials.start() == (None, ["trial"])


def test_a_library_that_cannot_be_read_is_not_used(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(files: list[Path]) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    trials.start()
    monkeypatch.setattr("engines.native.check.sha256_of", fail)
    assert trials.start() == (None, [])


def test_a_library_of_an_earlier_version_is_tried_once_more(trials: Trials) -> None:
    trials.start()
    (mark,) = trials.folder.glob("*.passed-*")
    mark.write_bytes(b"")
    assert trials.start() == (trials.library, ["trial"])
    assert trials.start() == (trials.library, [])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one variant elsewhere")
def test_a_changed_source_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.library_name()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    assert build.library_name() != before


def head_logits(library: Path, case: HeadRows, num_threads: int = 2) -> Any:
    (logits,) = run_operator(
        library, "CandidateLogits", case.inputs(), 1, attributes=case.attributes(), num_threads=num_threads
    )
    return logits


@pytest.mark.parametrize(
    "case",
    [
        HeadRows.random(num_rows=1),
        HeadRows.random(num_rows=5, reach=0.5),
        HeadRows.random(num_rows=33, reach=1000.0),
        HeadRows.random(num_rows=2, vocab=64, depth=576, rank=96),
    ],
    ids=["one", "few-candidates", "most-candidates", "wide"],
)
def test_candidate_logits_equal_the_reference(library: Path, case: HeadRows) -> None:
    logits = head_logits(library, case)
    np.testing.assert_allclose(logits, candidate_logits(case), rtol=1e-5, atol=1e-4)


def test_exact_logits_have_the_bits_of_the_exact_head(library: Path) -> None:
    case = HeadRows.random(num_rows=4, reach=1000.0)
    weight = np.ascontiguousarray(case.rows.T)
    inputs: dict[str, Any] = {"q": case.x, "weight": weight, "column_scale": case.rows_scale, "row_scale": case.x_scale}
    (exact,) = run_operator(library, "QuantizedProduct", inputs, 1)
    logits = head_logits(library, case)
    assert_same_bits([logits[:, case.frequent]], [exact[:, case.frequent]])
    for row, preview in enumerate(preview_logits(case)):
        found = candidates_of(case, preview)
        assert 0 < found.sum() <= case.num_candidates
        assert_same_bits([logits[row, found]], [exact[row, found]])


def test_candidates_of_a_row_do_not_depend_on_other_rows_or_threads(library: Path) -> None:
    case = HeadRows.random(num_rows=19)
    together = head_logits(library, case)
    for row in range(len(together)):
        part = {name: getattr(case, name)[row : row + 1] for name in ("x", "x_scale", "p", "p_scale")}
        assert_same_bits([head_logits(library, replace(case, **part), num_threads=1)], [together[row : row + 1]])


def test_a_candidate_is_exact_even_where_its_preview_is_wrong(library: Path) -> None:
    """The best preview is far from the exact logit: the result has the exact one, so another token may win."""
    case = HeadRows.random(num_rows=1)
    case.bias = np.full_like(case.bias, -100.0)
    token = int(np.setdiff1d(np.arange(len(case.bias)), case.frequent)[0])
    case.bias[token] = 50.0
    logits = head_logits(library, case)
    assert logits[0, token] == pytest.approx(float(exact_logits(case)[0, token]), abs=1e-4)
    assert logits[0].argmax() == candidate_logits(case)[0].argmax()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("preview", np.zeros((8, 100), np.int8), "one vocabulary"),
        ("preview", np.zeros((6, 333), np.int8), "divisible by 4"),
        ("bias", np.zeros(332, np.float32), "one vocabulary"),
        ("p", np.zeros((1, 12), np.uint8), "rank"),
        ("x", np.zeros((2, 100), np.uint8), "rows, depth"),
        ("frequent", np.array([0, 333], np.int32), "frequent token is none"),
        ("frequent", np.array([-1], np.int32), "frequent token is none"),
        ("frequent", np.array(1, np.int32), "list of token ids"),
        ("bias", np.array(1, np.float32), "one vocabulary"),
        ("x_scale", np.zeros((0, 1), np.float32), "one value per row"),
        ("p_scale", np.zeros((2, 1), np.float32), "one value per row"),
    ],
)
def test_candidate_logits_refuse_what_does_not_fit(library: Path, name: str, value: Any, message: str) -> None:
    case = HeadRows.random(num_rows=1)
    inputs: dict[str, Any] = {**case.inputs(), name: value}
    session = operator_session(library, "CandidateLogits", inputs, 1, attributes=case.attributes())
    with pytest.raises(Exception, match=message):
        session.run(None, inputs)


def test_candidate_logits_refuse_more_candidates_than_tokens(library: Path) -> None:
    case = replace(HeadRows.random(num_rows=1), num_candidates=334)
    with pytest.raises(Exception, match="at most the vocabulary"):
        head_logits(library, case)


def test_candidate_logits_of_no_rows_are_none(library: Path) -> None:
    case = HeadRows.random(num_rows=1)
    part = {name: getattr(case, name)[:0] for name in ("x", "x_scale", "p", "p_scale")}
    assert head_logits(library, replace(case, **part)).shape == (0, len(case.bias))


def test_rows_that_are_not_numbers_stay_so_and_spoil_no_other(library: Path) -> None:
    case = HeadRows.random(num_rows=3)
    whole = head_logits(library, case)
    scales = {name: getattr(case, name).copy() for name in ("x_scale", "p_scale")}
    for scale in scales.values():
        scale[1] = np.nan
    logits = head_logits(library, replace(case, **scales))
    assert np.isnan(logits[1]).all()
    assert_same_bits([logits[[0, 2]]], [whole[[0, 2]]])
