"""Operators on rows of several widths: right against numpy, and a row has the same bits whatever runs beside it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.native.reference import WidthRows, mixed, nested_product, nested_swiglu, width_product
from engines.native.single import operator_session, run_operator
from models.student.manifest import MAX_WIDTHS
from tests.engines.native.comparing import assert_quantised, assert_same_bits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native operators are built on Linux")

Floats = npt.NDArray[np.float32]
Quantised = npt.NDArray[np.uint8]

PARTS = np.array([8, 4, 16], np.int32)
SPLITS = [(1, 1, 1), (0, 0, 1), (0, 1, 1), (2, 5, 9), (0, 16, 32), (33, 33, 33), (0, 0, 33), (12, 13, 33), (0, 0, 0)]


def run_nested(library: Path, case: WidthRows, num_threads: int = 2) -> Floats:
    (product,) = run_operator(library, "NestedProduct", case.nested_inputs(), 1, num_threads=num_threads)
    return np.asarray(product)


def run_swiglu(library: Path, case: WidthRows, gate_up: Floats, num_threads: int = 2) -> tuple[Quantised, Floats]:
    inputs = case.swiglu_inputs(gate_up, PARTS[: len(case.neurons)])
    q, row_scale = run_operator(library, "NestedSwigluQuantize", inputs, 2, num_threads=num_threads)
    return q, row_scale


def run_down(library: Path, case: WidthRows, q: Quantised, num_threads: int = 2) -> Floats:
    (product,) = run_operator(library, "WidthProduct", case.width_inputs(q), 1, num_threads=num_threads)
    return np.asarray(product)


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("rows", SPLITS)
def test_rows_of_every_width_equal_the_reference(library: Path, rows: tuple[int, ...], num_tokens: int) -> None:
    case = WidthRows.random(rows=rows, num_tokens=num_tokens)
    gate_up = run_nested(library, case)
    expected = nested_product(case)
    is_run = ~np.isnan(expected)
    assert_same_bits([gate_up[is_run]], [expected[is_run]])
    q, row_scale = run_swiglu(library, case, gate_up)
    for row, values in enumerate(nested_swiglu(case, gate_up)):
        parts = int(PARTS[case.width_of_row[row]])
        assert_quantised(q[row, :, : values.shape[-1]], row_scale[row], mixed(values, parts))
    if len(q):
        assert_same_bits([run_down(library, case, q)], [width_product(case, q)])


def rows_at(case: WidthRows, row: int) -> WidthRows:
    """One row alone."""
    width = case.width_of_row[row]
    counts = np.array([int(i >= width) for i in range(len(case.rows))], np.int32)
    return replace(case, q=case.q[row : row + 1], row_scale=case.row_scale[row : row + 1], rows=counts)


def feed_forward(library: Path, case: WidthRows, num_threads: int = 2) -> tuple[Floats, Floats]:
    """As a layer does it. Shapes: returns [B, S, N] and [B, S, 1]."""
    gate_up = run_nested(library, case, num_threads)
    q, row_scale = run_swiglu(library, case, gate_up, num_threads)
    return run_down(library, case, q, num_threads), row_scale


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("num_rows", [2, 3, 8, 32, 33])
def test_a_row_ignores_the_widths_of_its_neighbours_and_their_number(
    library: Path, num_rows: int, num_tokens: int
) -> None:
    rng = np.random.default_rng(num_rows)
    for _ in range(3):
        full, middle = sorted(rng.integers(0, num_rows + 1, 2).tolist())
        case = WidthRows.random(rows=(full, middle, num_rows), num_tokens=num_tokens)
        together = feed_forward(library, case)
        for row in range(num_rows):
            alone = feed_forward(library, rows_at(case, row), num_threads=1)
            assert_same_bits([part[row : row + 1] for part in together], alone)


def test_rows_of_one_width_have_the_bits_of_the_plain_operators(library: Path) -> None:
    case = WidthRows.random(rows=(0, 7), neurons=(200, 128), num_tokens=2)
    plain: dict[str, Any] = {"q": case.q, "weight": case.gate_up[0], "column_scale": case.gate_up_scales[0]}
    (gate_up,) = run_operator(library, "QuantizedProduct", plain, 1)
    nested = run_nested(library, case)
    assert_same_bits([np.ascontiguousarray(nested[..., :256])], [gate_up])
    inputs = {"gate_up": gate_up, "row_scale": case.row_scale}
    q, row_scale = run_operator(library, "SwigluQuantize", inputs, 2, attributes={"hadamard_parts": 4})
    nested_q, nested_scale = run_swiglu(library, case, nested)
    assert_same_bits([np.ascontiguousarray(nested_q[..., :128]), nested_scale], [q, row_scale])
    (down,) = run_operator(
        library, "QuantizedProduct", {"q": q, "weight": case.down[1], "column_scale": case.down_scales[1]}, 1
    )
    assert_same_bits([run_down(library, case, nested_q)], [down])


def test_a_width_without_a_matrix_has_that_of_the_whole_width(library: Path) -> None:
    case = WidthRows.random(rows=(2, 5, 9), neurons=(64, 64, 64))
    q = np.random.default_rng(0).integers(1, 256, (9, 1, 64)).astype(np.uint8)
    shared = replace(
        case,
        down=[case.down[0], case.down[1], case.down[0]],
        down_scales=[case.down_scales[0], case.down_scales[1], case.down_scales[0]],
    )
    inputs = {**case.width_inputs(q), "weight_2": None, "column_scale_2": None}
    (product,) = run_operator(library, "WidthProduct", inputs, 1)
    assert_same_bits([product], [width_product(shared, q)])
    inputs |= {"weight_1": None, "column_scale_1": None}
    (product,) = run_operator(library, "WidthProduct", inputs, 1)
    shared.down, shared.down_scales = [case.down[0]] * 3, [case.down_scales[0]] * 3
    assert_same_bits([product], [width_product(shared, q)])


@pytest.mark.parametrize("changed", [None, "value", "scale"])
@pytest.mark.parametrize("like", [0, 1])
def test_a_width_may_have_the_matrix_of_another_or_nearly(library: Path, like: int, changed: str | None) -> None:
    case = WidthRows.random(rows=(2, 5, 9), neurons=(64, 64, 64))
    q = np.random.default_rng(0).integers(1, 256, (9, 1, 64)).astype(np.uint8)
    down, scales = case.down[like].copy(), case.down_scales[like].copy()
    if changed == "value":
        down[-1, -1] ^= 1
    elif changed == "scale":
        scales[-1] *= 2
    twin = replace(case, down=[*case.down[:2], down], down_scales=[*case.down_scales[:2], scales])
    assert_same_bits([run_down(library, twin, q)], [width_product(twin, q)])


def test_what_a_row_does_not_run_may_hold_anything(library: Path) -> None:
    case = WidthRows.random(rows=(1, 3, 6))
    expected = feed_forward(library, case)
    gate_up = run_nested(library, case)
    gate_up[np.isnan(nested_product(case))] = np.nan
    q, row_scale = run_swiglu(library, case, gate_up)
    for row, width in enumerate(case.width_of_row):
        q[row, :, case.neurons[width] :] = 255
    assert_same_bits([run_down(library, case, q), row_scale], expected)


def test_as_many_widths_as_a_student_can_have(library: Path) -> None:
    neurons = tuple(range(64 * (MAX_WIDTHS + 1), 0, -64))
    case = WidthRows.random(rows=tuple(range(1, len(neurons) + 1)), neurons=neurons)
    gate_up = run_nested(library, case)
    q, _ = run_operator(library, "NestedSwigluQuantize", case.swiglu_inputs(gate_up, np.full(8, 4, np.int32)), 2)
    assert_same_bits([run_down(library, case, q)], [width_product(case, q)])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rows_by_width", [1, 3], "more weights than rows_by_width"),
        ("rows_by_width", [2, 1, 3], "never fall"),
        ("rows_by_width", [-1, 1, 3], "never fall"),
        ("rows_by_width", [1, 2, 4], "end with the batch"),
        ("rows_by_width", [[1, 2, 3]], "one value per width"),
        ("q", np.zeros((3, 1, 92), np.uint8), "as wide as the first weight"),
        ("q", np.zeros(3, np.uint8), "batch"),
        ("weight_1", np.zeros((96, 100), np.int8), "column_scale"),
        ("weight_2", np.zeros((95, 144), np.int8), "divisible by 4"),
        ("weight_2", np.zeros((92, 144), np.int8), "of one depth"),
    ],
)
def test_nested_products_refuse_what_does_not_fit(library: Path, name: str, value: Any, message: str) -> None:
    case = WidthRows.random(rows=(1, 2, 3))
    given = np.array(value, np.int32) if name == "rows_by_width" else value
    with pytest.raises(Exception, match=message):
        run_operator(library, "NestedProduct", {**case.nested_inputs(), name: given}, 1)


def test_a_width_as_wide_as_the_next_has_no_block(library: Path) -> None:
    """Only its matrix differs."""
    case = WidthRows.random(rows=(1, 2, 3, 5), neurons=(192, 128, 128, 64))
    inputs = {**case.nested_inputs(), "weight_2": None, "column_scale_2": None}
    (product,) = run_operator(library, "NestedProduct", inputs, 1)
    expected = nested_product(case)
    is_run = ~np.isnan(expected)
    assert_same_bits([product[is_run]], [expected[is_run]])


def test_nested_products_refuse_a_block_that_ends_within_a_panel(library: Path) -> None:
    case = WidthRows.random(rows=(1, 2, 3), neurons=(200, 100, 64))
    with pytest.raises(Exception, match="multiple of 32"):
        run_nested(library, case)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_1", np.zeros((204, 50), np.int8), "no deeper"),
        ("weight_1", np.zeros((128, 51), np.int8), "column_scale"),
        ("weight_0", np.zeros((128, 50), np.int8), "as wide as the first weight"),
    ],
)
def test_products_by_width_refuse_what_does_not_fit(library: Path, name: str, value: Any, message: str) -> None:
    case = WidthRows.random(rows=(1, 2, 3))
    q = np.zeros((3, 1, 200), np.uint8)
    with pytest.raises(Exception, match=message):
        run_operator(library, "WidthProduct", {**case.width_inputs(q), name: value}, 1)


def test_products_by_width_refuse_to_leave_out_the_whole_width(library: Path) -> None:
    case = WidthRows.random(rows=(1, 2, 3))
    inputs = {**case.width_inputs(np.zeros((3, 1, 200), np.uint8)), "weight_0": None, "column_scale_0": None}
    with pytest.raises(Exception, match="input 2"):
        run_operator(library, "WidthProduct", inputs, 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("neurons", [200, 128], "one value per width"),
        ("neurons", [196, 128, 64], "all of gate_up"),
        ("neurons", [200, 128, 192], "never rise"),
        ("neurons", [200, 128, 0], "never rise"),
        ("hadamard_parts", [8, 4, 3], "powers of two"),
        ("hadamard_parts", [16, 4, 4], "divide the neurons"),
        ("rows_by_width", [3, 2, 3], "never fall"),
        ("row_scale", None, "one value per row"),
    ],
)
def test_nested_swiglu_refuses_what_does_not_fit(library: Path, name: str, value: Any, message: str) -> None:
    case = WidthRows.random(rows=(1, 2, 3))
    inputs = case.swiglu_inputs(np.zeros((3, 1, 400), np.float32), PARTS)
    inputs[name] = np.zeros((2, 1, 1), np.float32) if value is None else np.array(value, np.int32)
    with pytest.raises(Exception, match=message):
        run_operator(library, "NestedSwigluQuantize", inputs, 2)


def test_the_weights_of_a_session_stay_those_of_its_first_call(library: Path) -> None:
    """They are constants of a graph; here they are inputs, so that one can try."""
    case = WidthRows.random(rows=(1, 2, 3))
    inputs = case.nested_inputs()
    session = operator_session(library, "NestedProduct", inputs, 1)
    (first,) = session.run(None, inputs)
    other = {**inputs, "rows_by_width": np.array([3, 3, 3], np.int32), "weight_0": np.zeros_like(case.gate_up[0])}
    (second,) = session.run(None, other)
    assert_same_bits([np.ascontiguousarray(second[..., :128])], [np.ascontiguousarray(first[..., :128])])
