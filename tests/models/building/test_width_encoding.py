"""Compact forms of matrices: what they cost in accuracy, and that a widths file reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.building.width_encoding import decode_difference, decode_int8, encode_difference, encode_int8, num_groups
from models.building.width_file import read_width_file, write_width_file
from models.errors import WeightsError
from models.sources.source import ModelSource, open_source
from models.student.cut import default_modules, plain_layout
from tests.models.width_files import WIDTHS, random_width_tensors, width_plan_for

Tensors = dict[str, npt.NDArray[Any]]


def normal(rows: int, columns: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.2, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("columns", [64, 100, 192])
def test_int8_is_within_half_a_step_of_its_group(columns: int) -> None:
    matrix = normal(7, columns)
    matrix[2, 5] = 40.0
    stored = encode_int8("x", matrix)
    assert stored["x.int8"].dtype == np.int8
    assert stored["x.scales"].shape == (7, num_groups(columns))
    steps = np.repeat(stored["x.scales"].astype(np.float32), 64, axis=1)[:, :columns]
    assert (np.abs(decode_int8(stored["x.int8"], stored["x.scales"].astype(np.float32)) - matrix) <= 0.51 * steps).all()


def test_int8_of_nothing_is_nothing() -> None:
    stored = encode_int8("x", np.zeros((3, 64), np.float32))
    assert not decode_int8(stored["x.int8"], stored["x.scales"].astype(np.float32)).any()


def difference(matrix: npt.NDArray[np.float32], base: npt.NDArray[np.float32], rank: int) -> npt.NDArray[np.float32]:
    stored = encode_difference("x", matrix, base, rank)
    scales = (stored["x.left_scales"], stored["x.right_scales"])
    return decode_difference(stored["x.left"], scales[0], stored["x.right"], scales[1], base)


def test_a_difference_of_its_own_rank_comes_back() -> None:
    base = normal(20, 96)
    matrix = base[:, :64] + normal(20, 3, 1) @ normal(3, 64, 2)
    assert np.abs(difference(matrix, base, 3) - matrix).max() < 0.02 * np.abs(matrix - base[:, :64]).max()
    worse = np.abs(difference(matrix, base, 1) - matrix).mean()
    assert worse > 4 * np.abs(difference(matrix, base, 3) - matrix).mean()


def test_no_difference_is_none() -> None:
    base = normal(5, 64)
    assert np.array_equal(difference(base, base, 2), base)


@pytest.fixture
def source(tiny_source: Callable[..., Path]) -> ModelSource:
    return open_source(tiny_source("llama", intermediate_size=256, num_hidden_layers=4))


def compact(source: ModelSource) -> Tensors:
    """Dense random matrices in compact forms: the widest in int8, the others as differences, one left as it is."""
    dense, found = random_width_tensors(source.architecture), Tensors()
    for name, values in dense.items():
        layer = int(name.split(".")[-2]) if not name.startswith("order") else 0
        if name.startswith("order") or (name.startswith("slim") and layer == 1):
            found[name] = values
        elif name.startswith("wide"):
            found |= encode_int8(name, values)
        elif name.endswith("output"):
            own = source.read(f"model.layers.{layer}.self_attn.o_proj.weight")
            found |= encode_difference(name, values.astype(np.float32), own, min(own.shape))
        else:
            found |= encode_difference(name, values, dense[f"wide.layers.{layer}.down"], len(values))
    return found


def test_a_file_reads_every_form(source: ModelSource, tmp_path: Path) -> None:
    write_width_file(tmp_path / "w.safetensors", width_plan_for(source), compact(source))
    file = read_width_file(tmp_path / "w.safetensors")
    file.check(source, plain_layout(default_modules(4)))
    dense = random_width_tensors(source.architecture)
    for width in WIDTHS:
        for layer in range(4):
            for part in ("down", "output") if width.has_own_output else ("down",):
                wanted = dense[f"{width.name}.layers.{layer}.{part}"].astype(np.float32)
                assert np.abs(file.read(source, width, layer, part) - wanted).max() < 0.02


BREAKS: dict[str, Callable[[Tensors], object]] = {
    "scales": lambda tensors: tensors.pop("wide.layers.0.down.scales"),
    "left_scales": lambda tensors: tensors.pop("mid.layers.2.down.left_scales"),
    "right": lambda tensors: tensors.update({"mid.layers.2.down.right": np.zeros((1, 1), np.int8)}),
    "wide.layers.1.down": lambda tensors: [tensors.pop(f"wide.layers.1.down.{part}") for part in ("int8", "scales")],
    "unknown": lambda tensors: tensors.update({"slim.layers.1.down.left": np.zeros((1, 1), np.int8)}),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_form_that_is_not_whole_is_refused(source: ModelSource, tmp_path: Path, what: str) -> None:
    tensors = compact(source)
    BREAKS[what](tensors)
    write_width_file(tmp_path / "w.safetensors", width_plan_for(source), tensors)
    with pytest.raises(WeightsError, match=what):
        read_width_file(tmp_path / "w.safetensors").check(source, plain_layout(default_modules(4)))


def test_scales_that_are_not_finite_are_refused(source: ModelSource, tmp_path: Path) -> None:
    tensors = compact(source)
    tensors["wide.layers.3.down.scales"][0, 0] = np.inf
    write_width_file(tmp_path / "w.safetensors", width_plan_for(source), tensors)
    with pytest.raises(WeightsError, match="not finite"):
        read_width_file(tmp_path / "w.safetensors").check(source, plain_layout(default_modules(4)))
