"""A widths file survives its bytes, is refused by name where it does not fit, and becomes part of a student."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.building.build import build_student
from models.building.width_file import NarrowPath, WidthFile, read_width_file, write_width_file
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.evaluation.compute import compute_share, path_bytes, path_multiply_adds
from models.graphs.rotate import RotatedSource, hadamard, hadamard_size, rotation
from models.graphs.widths import LayerWidths, own_down, own_output
from models.sources.source import ModelSource, open_source
from models.student.cut import parse_modules, plain_layout
from models.student.folder import Student
from models.student.inspect import describe
from models.student.manifest import DepthRule, Measured, PathFigures, Quality, Retention, StudentPath, Width
from tests.models.exit_files import write_tiny_exits
from tests.models.width_files import (
    NUM_NEURONS,
    PLAN,
    WIDTHS,
    random_width_tensors,
    width_plan_for,
    write_tiny_widths,
)

MakeSource = Callable[..., Path]
MODULES = "knowledge:1,reasoning:2,adapter:1"
LAYOUT = plain_layout(parse_modules(MODULES, 4))


@pytest.fixture
def folder(tiny_source: MakeSource) -> Path:
    return tiny_source("llama", intermediate_size=NUM_NEURONS)


@pytest.fixture
def source(folder: Path) -> ModelSource:
    return open_source(folder)


@pytest.fixture
def widths(source: ModelSource, tmp_path: Path) -> WidthFile:
    return read_width_file(write_tiny_widths(tmp_path / "widths.safetensors", source))


def test_widths_survive_their_file_and_have_the_same_bytes_again(
    widths: WidthFile, source: ModelSource, tmp_path: Path
) -> None:
    widths.check(source, LAYOUT)
    assert widths.plan == width_plan_for(source)
    stored = random_width_tensors(source.architecture)
    np.testing.assert_array_equal(widths.order(2), stored["order.2"])
    for width in WIDTHS:
        np.testing.assert_array_equal(widths.read(source, width, 1, "down"), stored[f"{width.name}.layers.1.down"])
    output = widths.read(source, WIDTHS[1], 3, "output")
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, stored["mid.layers.3.output"].astype(np.float32))
    assert widths.stored.tensors["mid.layers.3.output"].dtype == "F16"
    assert widths.stored.tensors["order.2"].dtype == "I16"
    again = write_tiny_widths(tmp_path / "again", source)
    assert sha256_of([again]) == widths.sha256


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def apply(stored: dict[str, Any]) -> None:
        del stored[name]

    return apply


def setting(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(stored: dict[str, Any]) -> None:
        stored[name] = change(stored.get(name))

    return apply


def first_is(value: float) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        changed = values.copy()
        changed.flat[0] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("wide.layers.2.down"), "missing tensors: wide.layers.2.down"),
        (without("mid.layers.0.output"), "missing tensors: mid.layers.0.output"),
        (without("order.3"), "missing tensors: order.3"),
        (setting("wide.layers.2.output", lambda _: np.zeros((64, 64))), "unknown tensors: wide.layers.2.output"),
        (setting("order.4", lambda _: np.arange(256)), "unknown tensors: order.4"),
        (setting("slim.layers.0.down", lambda v: v[:, 1:]), r"slim.layers.0.down is \[64, 63\], not \[64, 64\]"),
        (setting("order.1", lambda v: v[:-1]), r"order.1 is \[255\], not \[256\]"),
        (setting("order.1", lambda v: v % 255), "order.1 must have every neuron from 0 to 255 once"),
        (setting("order.1", lambda v: v + 1), "order.1 must have every neuron from 0 to 255 once"),
        (setting("order.1", lambda v: v.astype(np.float32)), "order.1 is stored as F32; only I8, I16, I32 can be read"),
        (setting("slim.layers.3.down", first_is(np.nan)), "slim.layers.3.down is not finite"),
        (setting("mid.layers.3.output", first_is(np.inf)), "mid.layers.3.output is not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    source: ModelSource, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    stored = random_width_tensors(source.architecture)
    spoil(stored)
    write_width_file(tmp_path / "widths", width_plan_for(source), stored)
    with pytest.raises(WeightsError, match=message) as caught:
        read_width_file(tmp_path / "widths").check(source, LAYOUT)
    assert str(tmp_path / "widths") in str(caught.value)


def width(name: str, *neurons: int) -> Width:
    return Width(name=name, neurons=neurons)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source_sha256": "abc" * 20}, "the widths were made for a model with SHA-256 abcabcabcabc"),
        ({"widths": (), "paths": ()}, "it has no widths"),
        (
            {"widths": (width("a", 64, 96, 64, 64),)},
            "width 'a' has 96 neurons in layer 1: that must be a multiple of 64",
        ),
        ({"widths": (width("a", 64, 320, 64, 64),)}, "has 320 neurons in layer 1: .* at most the layer's 256"),
        ({"widths": (width("a", 64, 0, 64, 64),)}, "has 0 neurons in layer 1"),
        ({"widths": (width("a", 64, -64, 64, 64),)}, "has -64 neurons in layer 1"),
        ({"widths": (width("a", 64, 64, 64),)}, "width 'a' has neurons for 3 layers of 4"),
        (
            {"widths": (width("a", 128, 64, 64, 64), width("b", 64, 64, 64, 128))},
            "width 'b' does not lie within 'a': widths are listed widest first",
        ),
        ({"widths": (width("a", 64, 64, 64, 64),) * 2}, "the name 'a' is used twice"),
        ({"widths": (width("a:b", 64, 64, 64, 64),)}, "a width cannot be called 'a:b'"),
        ({"paths": (NarrowPath(name="x", width="fat"),)}, "path 'x' has an unknown width 'fat'"),
        ({"paths": (NarrowPath(name="x", width=""),)}, "path 'x' names no width"),
        ({"paths": (NarrowPath(name="x", width="slim"),) * 2}, "the name 'x' is used twice"),
        ({"paths": (NarrowPath(name="full", width="slim"),)}, "the name 'full' is used twice"),
        ({"paths": (NarrowPath(name="x", width="slim", modules=("mind",)),)}, "path 'x' must name modules"),
        ({"paths": (NarrowPath(name="x", width="slim", modules=("knowledge",)),)}, "its exit is elsewhere"),
        ({"paths": (NarrowPath(name="x", width="slim", exit="hatch"),)}, "unknown exit 'hatch'"),
        ({"tasks": {"math": "nowhere"}}, "task 'math' has no path 'nowhere'"),
        (
            {"depth_rules": (DepthRule(max_prompt_tokens=None, path="nowhere"),)},
            "a depth rule names no path: 'nowhere'",
        ),
    ],
)
def test_plans_that_do_not_fit_are_refused_by_name(
    source: ModelSource, folder: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    file = tmp_path / "widths"
    write_width_file(file, width_plan_for(source, **fields), {})
    with pytest.raises(ConfigError, match=message) as caught:
        build_student(folder, tmp_path / "out", modules=MODULES, widths=file)
    assert str(file) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_path_of_the_exits_and_one_of_the_widths_cannot_share_a_name(
    source: ModelSource, folder: Path, tmp_path: Path
) -> None:
    exits = write_tiny_exits(tmp_path / "exits", source)
    file = write_tiny_widths(tmp_path / "widths", source, paths=(NarrowPath(name="legal", width="slim"),))
    with pytest.raises(ConfigError, match="the name 'legal' is used twice"):
        build_student(folder, tmp_path / "out", exits=exits, widths=file)


def test_files_that_are_no_widths_are_refused(widths: WidthFile, source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        read_width_file(tmp_path / "none")
    (tmp_path / "short").write_bytes(widths.file.read_bytes()[:900])
    with pytest.raises(WeightsError, match=r"cut short|damaged"):
        read_width_file(tmp_path / "short")
    with pytest.raises(ConfigError, match="its plan cannot be read"):
        read_width_file(write_tiny_exits(tmp_path / "exits", source))
    write_width_file(tmp_path / "newer", width_plan_for(source, format_version=2), {})
    with pytest.raises(ConfigError, match="format_version 2 is not 1"):
        read_width_file(tmp_path / "newer")


@pytest.mark.parametrize(("num_neurons", "dtype"), [(32_768, "I16"), (32_769, "I32")])
def test_orders_of_very_large_layers_are_stored_whole(
    source: ModelSource, tmp_path: Path, num_neurons: int, dtype: str
) -> None:
    order = np.arange(num_neurons)[::-1]
    write_width_file(tmp_path / "widths", width_plan_for(source), {"order.0": order})
    widths = read_width_file(tmp_path / "widths")
    assert widths.stored.tensors["order.0"].dtype == dtype
    np.testing.assert_array_equal(widths.order(0), order)


def test_blocks_and_output_runs_of_a_layer() -> None:
    order = np.random.default_rng(1).permutation(256)
    layer = LayerWidths(neurons=(256, 192, 192, 64), has_own_output=(False, False, True, False), order=order)
    assert [(block.first, block.end, block.entry) for block in layer.blocks] == [
        (0, 64, 3),
        (64, 192, 2),
        (192, 256, 0),
    ]
    assert [(run.first, run.last, run.own) for run in layer.output_runs] == [(0, 1, False), (2, 2, True), (3, 3, False)]
    np.testing.assert_array_equal(order[layer.places], np.arange(256))
    whole = LayerWidths(neurons=(256, 256), has_own_output=(False, False), order=order)
    assert [(block.first, block.end, block.entry) for block in whole.blocks] == [(0, 256, 1)]
    assert [(run.first, run.last, run.own) for run in whole.output_runs] == [(0, 1, False)]


def test_a_source_in_the_layers_orders_computes_the_same(widths: WidthFile, source: ModelSource) -> None:
    ordered = widths.source_for(source)
    inputs = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)

    def layer_of(model: ModelSource) -> Any:
        gate, up, down = (model.read(f"model.layers.2.mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
        return ((inputs @ gate.T) * (inputs @ up.T)) @ down.T

    np.testing.assert_allclose(layer_of(ordered), layer_of(source), rtol=1e-4, atol=1e-4)
    first = ordered.read("model.layers.2.mlp.gate_proj.weight")[0]
    np.testing.assert_array_equal(first, source.read("model.layers.2.mlp.gate_proj.weight")[widths.order(2)[0]])
    assert ordered.shape(own_down(2, 3)) == (64, 128)
    assert ordered.shape(own_output(2, 2)) == (64, 64)
    assert own_output(2, 1) not in ordered.tensor_names()
    assert ordered.files == (*source.files, widths.file)


def test_rotated_own_matrices_write_rotated_states(widths: WidthFile, source: ModelSource) -> None:
    ordered = widths.source_for(source)
    rotated = RotatedSource(ordered)
    turn = rotation(64)
    neurons = np.random.default_rng(4).standard_normal((5, 192)).astype(np.float32)
    size = hadamard_size(192)
    mixed = np.einsum("pq,bqr->bpr", hadamard(size), neurons.reshape(5, size, -1)).reshape(5, 192)
    expected = neurons @ ordered.read(own_down(0, 2)).T @ turn
    np.testing.assert_allclose(mixed @ rotated.read(own_down(0, 2)).T, expected, rtol=1e-3, atol=1e-3)
    heads = np.random.default_rng(5).standard_normal((5, 64)).astype(np.float32)
    expected = heads @ ordered.read(own_output(0, 2)).T @ turn
    np.testing.assert_allclose(heads @ rotated.read(own_output(0, 2)).T, expected, rtol=1e-3, atol=1e-3)


def test_build_takes_widths_paths_tasks_and_rules_from_the_file(
    source: ModelSource, folder: Path, tmp_path: Path
) -> None:
    rules = (DepthRule(max_prompt_tokens=64, path="slim"), DepthRule(max_prompt_tokens=None, path="wide"))
    file = write_tiny_widths(tmp_path / "widths", source, tasks={"math": "slim"}, depth_rules=rules)
    manifest = build_student(folder, tmp_path / "out", modules=MODULES, precisions=("fp32",), widths=file)
    assert manifest == Student.open(tmp_path / "out").manifest
    assert manifest.widths == WIDTHS
    assert manifest.widths_sha256 == sha256_of([file])
    assert (manifest.tasks["math"], manifest.tasks["legal"]) == ("slim", "full")
    assert manifest.depth_rules == rules
    every = ("knowledge", "reasoning", "adapter")
    assert manifest.path("middle") == StudentPath(name="middle", modules=every, exit="adapter_exit", width="mid")
    assert manifest.full_path == StudentPath(name="full", modules=every, exit="adapter_exit")
    assert [path.name for path in manifest.paths] == ["wide", "middle", "slim", "full"]
    assert [exit.name for exit in manifest.exits] == ["adapter_exit"]  # nobody trained the others


def test_an_untrained_exit_stays_if_a_narrow_path_names_it(source: ModelSource, folder: Path, tmp_path: Path) -> None:
    short = NarrowPath(name="short", width="slim", modules=("knowledge",), exit="knowledge_exit")
    file = write_tiny_widths(tmp_path / "widths", source, paths=(*PLAN.paths, short))
    manifest = build_student(folder, tmp_path / "out", modules=MODULES, precisions=("fp32",), widths=file)
    assert [exit.name for exit in manifest.exits] == ["knowledge_exit", "adapter_exit"]
    assert [path.name for path in manifest.paths] == ["knowledge", "wide", "middle", "slim", "short", "full"]


def test_build_with_exits_and_widths_has_the_paths_of_both(source: ModelSource, folder: Path, tmp_path: Path) -> None:
    exits = write_tiny_exits(tmp_path / "exits", source)
    short = NarrowPath(name="short", width="slim", modules=("knowledge",), exit="math_exit")
    file = write_tiny_widths(tmp_path / "widths", source, paths=(*PLAN.paths, short))
    manifest = build_student(folder, tmp_path / "out", precisions=("fp32",), exits=exits, widths=file)
    assert [path.name for path in manifest.paths][-6:] == ["legal", "wide", "middle", "slim", "short", "full"]
    assert manifest.path("short") == StudentPath(name="short", modules=("knowledge",), exit="math_exit", width="slim")
    assert manifest.tasks["legal"] == "legal"


LAYER = 2 * 64 * 64 + 2 * 64 * 32  # q and o, k and v of the tiny llama
NEURON = 3 * 64
HEAD = 64 * 320


@pytest.fixture
def student(widths: WidthFile, folder: Path, tmp_path: Path) -> Student:
    build_student(
        folder, tmp_path / "out", modules=MODULES, precisions=("fp32", "w8a8", "w8a8-native"), widths=widths.file
    )
    return Student.open(tmp_path / "out")


def test_narrow_paths_compute_their_neurons_alone(student: Student) -> None:
    manifest = student.manifest
    counted = {path.name: path_multiply_adds(manifest, path) for path in manifest.paths}
    assert counted["full"] == 4 * LAYER + 4 * 256 * NEURON + HEAD
    assert counted["wide"] == 4 * LAYER + (192 + 192 + 256 + 192) * NEURON + HEAD
    assert counted["slim"] == 4 * LAYER + (64 + 64 + 128 + 64) * NEURON + HEAD
    assert compute_share(manifest, manifest.path("slim")) == counted["slim"] / counted["full"]
    attention = path_multiply_adds(manifest, manifest.path("slim"), 10) - counted["slim"]
    assert attention == 4 * 2 * 64 * 10


def test_deeper_paths_are_those_that_compute_more(student: Student) -> None:
    names = [path.name for path in student.manifest.paths_by_depth]
    assert names == ["slim", "middle", "wide", "full"]
    ranks = student.manifest.path_ranks
    assert sorted(ranks, key=ranks.__getitem__) == ["full", "wide", "middle", "slim"]


@pytest.mark.parametrize(("variant", "item_bytes"), [("fp32", 4), ("w8a8", 1), ("w8a8-native", 1)])
def test_a_path_needs_the_bytes_of_its_own_width(student: Student, variant: str, item_bytes: int) -> None:
    manifest = student.manifest
    sizes = {name: path_bytes(student, manifest.path(name), variant) for name in ("full", "wide", "middle", "slim")}
    neurons = {"full": 4 * 256, "wide": 832, "middle": 512, "slim": 320}
    shared = 4 * LAYER + HEAD
    for name, count in neurons.items():
        least = (shared + count * NEURON) * item_bytes
        assert least <= sizes[name] < least * 1.1 + 20_000, name
    assert sizes["full"] < manifest.variant(variant).weight_bytes


def test_a_student_of_the_same_widths_takes_over_what_was_measured_of_them(
    widths: WidthFile, folder: Path, tmp_path: Path
) -> None:
    def measured(sha256: str, *paths: str) -> Measured:
        return Measured(
            exits_sha256="",
            widths_sha256=sha256,
            quality=tuple(
                Quality(path=path, variant="fp32", cross_entropy=2.5, text="eval", num_tokens=9) for path in paths
            ),
            retention=tuple(
                Retention(path=path, task="math", variant="fp32", score=0.9, low=0.8, high=0.95) for path in paths
            ),
            figures=tuple(
                PathFigures(path=path, head="exact", task="math", variant="fp32", language="en") for path in paths
            ),
        )

    def paths_kept(out: str, given: Measured, file: Path | None = widths.file) -> list[set[str]]:
        manifest = build_student(
            folder, tmp_path / out, modules=MODULES, precisions=("fp32",), widths=file, measured=given
        )
        return [{one.path for one in kind} for kind in (manifest.quality, manifest.retention, manifest.figures)]

    assert paths_kept("same", measured(widths.sha256, "full", "slim")) == [{"full", "slim"}] * 3
    assert paths_kept("other", measured("ab" * 32, "full", "slim")) == [{"full"}] * 3
    assert paths_kept("none", measured(widths.sha256, "full", "slim"), None) == [{"full"}] * 3
    with pytest.raises(ConfigError, match="'poetry' on 'math' at 'fp32': there is no such path"):
        paths_kept("wrong", measured(widths.sha256, "poetry"))


def test_inspect_shows_widths(student: Student, widths: WidthFile) -> None:
    lines = [" ".join(line.split()) for line in describe(student.folder).splitlines()]
    assert f"widths (file with sha256 {widths.sha256[:12]}...)" in lines
    assert "wide 192 to 256 of 256 neurons in every layer, output matrices of its own" in lines
    own = "output matrices of feed-forward and attention of its own"
    assert f"mid 64 to 192 of 256 neurons in every layer, {own}" in lines
    assert "slim knowledge > reasoning > adapter > adapter_exit, 4 of 4 layers, width slim" in lines


def test_a_manifest_with_widths_survives_its_file_and_one_without_says_nothing_of_them(student: Student) -> None:
    encoded = msgspec.json.encode(student.manifest.path("full"))
    assert b"width" not in encoded
    assert msgspec.json.decode(msgspec.json.encode(student.manifest), type=type(student.manifest)) == student.manifest
