"""Widths that take each layer of another width: read from its matrices, refused where they do not fit, stored once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.building.build import build_student
from models.building.width_file import WidthFile, read_width_file, write_width_file
from models.errors import ConfigError, WeightsError
from models.evaluation.compute import path_bytes, path_multiply_adds
from models.sources.source import ModelSource, open_source
from models.student.folder import Student
from models.student.manifest import Width
from tests.models.width_files import (
    MIXED,
    MIXED_PATHS,
    MIXED_WIDTHS,
    NUM_NEURONS,
    WIDTHS,
    width_plan_for,
    write_tiny_widths,
)

MakeSource = Callable[..., Path]


@pytest.fixture
def folder(tiny_source: MakeSource) -> Path:
    return tiny_source("llama", intermediate_size=NUM_NEURONS)


@pytest.fixture
def source(folder: Path) -> ModelSource:
    return open_source(folder)


def mixed_file(source: ModelSource, file: Path, **fields: Any) -> Path:
    given = {"widths": MIXED_WIDTHS, "mixed": MIXED, "paths": MIXED_PATHS, **fields}
    return write_tiny_widths(file, source, **given)


@pytest.fixture
def widths(source: ModelSource, tmp_path: Path) -> WidthFile:
    return read_width_file(mixed_file(source, tmp_path / "mixed.safetensors"))


def test_every_layer_has_the_matrices_of_the_width_it_takes(widths: WidthFile, source: ModelSource) -> None:
    assert not any(name.startswith(("almost.", "between.")) for name in widths.stored.tensors)
    wide, mid = WIDTHS[0], WIDTHS[1]
    almost, between = MIXED_WIDTHS[0], MIXED_WIDTHS[2]
    own = source.read("model.layers.0.mlp.down_proj.weight")[:, widths.order(0)]
    np.testing.assert_array_equal(widths.read(source, almost, 0, "down"), own)
    np.testing.assert_array_equal(widths.read(source, almost, 1, "down"), widths.read(source, wide, 1, "down"))
    np.testing.assert_array_equal(widths.read(source, between, 1, "down"), widths.read(source, wide, 1, "down"))
    np.testing.assert_array_equal(widths.read(source, between, 3, "down"), widths.read(source, mid, 3, "down"))
    np.testing.assert_array_equal(widths.read(source, between, 3, "output"), widths.read(source, mid, 3, "output"))
    model_own = source.read("model.layers.1.self_attn.o_proj.weight")  # wide has none of its own
    np.testing.assert_array_equal(widths.read(source, between, 1, "output"), model_own)


def test_differences_are_added_to_the_widest_width_with_matrices(source: ModelSource, tmp_path: Path) -> None:
    plain = read_width_file(write_tiny_widths(tmp_path / "plain", source, rank=3))
    mixed = read_width_file(mixed_file(source, tmp_path / "mixed", rank=3))
    for width in WIDTHS:
        np.testing.assert_array_equal(mixed.read(source, width, 2, "down"), plain.read(source, width, 2, "down"))


def renamed(name: str, *layers: str) -> dict[str, Any]:
    return {"mixed": {**MIXED, name: layers}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (renamed("almost", "", "wide", ""), "mixed width 'almost' names 3 layers of 4"),
        (renamed("almost", "", "fat", "", "wide"), "mixed width 'almost' takes layers of 'fat', which has no matrices"),
        (renamed("almost", "", "between", "", "wide"), "'almost' takes layers of 'between', which has no matrices"),
        (renamed("almost", "", "wide", "", ""), "'almost' has 192 neurons in layer 3, and what it takes there has 256"),
        (
            {
                "widths": (
                    *MIXED_WIDTHS[:2],
                    Width(name="between", neurons=(192, 192), has_own_output=True),
                    *WIDTHS[1:],
                )
            },
            "width 'between' has neurons for 2 layers of 4",
        ),
        (renamed("nobody", "", "", "", ""), "there is no width 'nobody' to mix"),
        ({"mixed": dict.fromkeys((one.name for one in MIXED_WIDTHS), ("",) * 4)}, "every width is mixed"),
        (
            {"widths": (*MIXED_WIDTHS[:2], Width(name="between", neurons=MIXED_WIDTHS[2].neurons), *WIDTHS[1:])},
            "mixed width 'between' takes output matrices of attention, and must say so",
        ),
    ],
)
def test_mixtures_that_do_not_fit_are_refused_by_name(
    source: ModelSource, folder: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    file = mixed_file(source, tmp_path / "widths", **fields)
    with pytest.raises((ConfigError, WeightsError), match=message) as caught:
        build_student(folder, tmp_path / "out", widths=file)
    assert str(file) in str(caught.value)


def test_a_width_of_too_few_layers_is_named_though_others_take_its_layers(
    source: ModelSource, folder: Path, tmp_path: Path
) -> None:
    short = (MIXED_WIDTHS[0], Width(name="wide", neurons=(192, 192)), *MIXED_WIDTHS[2:])
    write_width_file(tmp_path / "widths", width_plan_for(source, widths=short, mixed=MIXED, paths=MIXED_PATHS), {})
    with pytest.raises(ConfigError, match="width 'wide' has neurons for 2 layers of 4"):
        build_student(folder, tmp_path / "out", widths=tmp_path / "widths")


def test_what_widths_share_is_stored_once(widths: WidthFile, source: ModelSource, folder: Path, tmp_path: Path) -> None:
    plain = write_tiny_widths(tmp_path / "plain.safetensors", source)
    sizes = {}
    for name, file in (("plain", plain), ("mixed", widths.file)):
        build_student(folder, tmp_path / name, precisions=("w8a8-native",), widths=file)
        sizes[name] = sum(one.stat().st_size for one in (tmp_path / name).glob("*.weights"))
    assert sizes["mixed"] < sizes["plain"] + 20_000  # scales and counts, which are small


def test_what_the_full_path_shares_is_stored_again_at_fp32(
    widths: WidthFile, source: ModelSource, folder: Path, tmp_path: Path
) -> None:
    """There the full path keeps the model's order of neurons, and a layer taken from it has the order of the widths."""
    plain = write_tiny_widths(tmp_path / "plain.safetensors", source)
    sizes = {}
    for name, file in (("plain", plain), ("mixed", widths.file)):
        build_student(folder, tmp_path / name, precisions=("fp32",), widths=file)
        sizes[name] = sum(one.stat().st_size for one in (tmp_path / name).glob("*.weights"))
    taken_whole = 2 * 4 * source.architecture.hidden_size * NUM_NEURONS  # two layers of `almost`, four bytes each
    assert taken_whole <= sizes["mixed"] - sizes["plain"] < taken_whole + 20_000


def test_a_mixed_path_costs_the_neurons_of_its_layers(widths: WidthFile, folder: Path, tmp_path: Path) -> None:
    build_student(folder, tmp_path / "out", precisions=("fp32",), widths=widths.file)
    student = Student.open(tmp_path / "out")
    manifest = student.manifest
    cost = {path.name: path_multiply_adds(manifest, path) for path in manifest.paths}
    assert cost["full"] > cost["almost"] > cost["wide"] > cost["between"] > cost["middle"] > cost["slim"]
    assert cost["almost"] - cost["wide"] == 64 * 3 * manifest.architecture.hidden_size
    size = {path.name: path_bytes(student, path, "fp32") for path in manifest.paths}
    assert size["almost"] - size["wide"] == pytest.approx(4 * (cost["almost"] - cost["wide"]), abs=4096)
