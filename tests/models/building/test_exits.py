"""An exits file reads back as it was written, or is refused by name; a student built with it is otherwise the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.building.build import build_student
from models.building.exits import Exits, PlannedExit, PlannedModule, find_problems, read_exits, write_exits
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.graphs.rotate import RotatedSource, rotation
from models.sources.source import ModelSource, open_source
from models.student.cut import FULL_PATH
from models.student.folder import Student
from models.student.inspect import describe
from models.student.manifest import Measured, Quality, Retention, StudentPath, read_manifest
from tests.models.exit_files import PLAN, plan_for, random_tensors, write_tiny_exits

MakeSource = Callable[..., Path]


@pytest.fixture
def folder(tiny_source: MakeSource) -> Path:
    return tiny_source("llama")


@pytest.fixture
def source(folder: Path) -> ModelSource:
    return open_source(folder)


@pytest.fixture
def exits(source: ModelSource, tmp_path: Path) -> Exits:
    return read_exits(write_tiny_exits(tmp_path / "exits.safetensors", source))


def test_exits_survive_their_file(exits: Exits, source: ModelSource) -> None:
    assert exits.plan == plan_for(source)
    assert exits.sha256 == sha256_of([exits.file])
    assert [file.name for file in exits.file.parent.glob("exits*")] == [exits.file.name]
    for name, values in random_tensors(source.architecture).items():
        np.testing.assert_array_equal(exits.read(name), values.astype(np.float16).astype(np.float32))


def test_exits_have_the_same_bytes_however_their_tensors_come(
    exits: Exits, source: ModelSource, tmp_path: Path
) -> None:
    tensors = random_tensors(source.architecture)
    write_exits(tmp_path / "again", plan_for(source), {name: tensors[name] for name in reversed(tensors)})
    assert (tmp_path / "again").read_bytes() == exits.file.read_bytes()


def test_exit_source_is_a_model_of_its_blocks(exits: Exits, source: ModelSource) -> None:
    view = exits.source_for("math_exit", source)
    assert view.architecture == msgspec.structs.replace(source.architecture, num_layers=2)
    np.testing.assert_array_equal(view.read("model.norm.weight"), source.read("model.norm.weight"))
    np.testing.assert_array_equal(view.read("lm_head.weight"), source.read("lm_head.weight"))
    name = "mlp.up_proj.weight"
    np.testing.assert_array_equal(view.read(f"model.layers.1.{name}"), exits.read(f"math_exit.layers.1.{name}"))
    assert view.shape(f"model.layers.1.{name}") == (96, 64)
    layers = {name.split(".")[2] for name in view.tensor_names() if name.startswith("model.layers.")}
    assert layers == {"0", "1"}


def test_exit_source_never_passes_the_models_layers_off_as_its_own(exits: Exits, source: ModelSource) -> None:
    with pytest.raises(WeightsError, match=r"'legal_exit' has no tensor model\.layers\.1\."):
        exits.source_for("legal_exit", source).read("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ConfigError, match="no exit 'poetry', only math_exit, fact_exit, legal_exit"):
        exits.source_for("poetry", source)


def test_rotated_map_maps_rotated_states_to_rotated_images(exits: Exits, source: ModelSource) -> None:
    plain = exits.source_for("fact_exit", source)
    rotated = RotatedSource(plain)
    turn = rotation(64)
    hidden = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    image = hidden @ plain.read("map.weight").T + plain.read("map.bias")
    found = (hidden @ turn) @ rotated.read("map.weight").T + rotated.read("map.bias")
    np.testing.assert_allclose(found, image @ turn, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"format_version": 2}, "format_version 2 is not 1"),
        ({"modules": ()}, "it names no modules"),
        ({"modules": (*PLAN.modules[:2], PlannedModule(name="reasoning", num_layers=1))}, "'reasoning' is used twice"),
        ({"modules": (PlannedModule(name="head", num_layers=1), *PLAN.modules)}, "cannot be called 'head'"),
        ({"exits": (*PLAN.exits, PlannedExit(name="math_exit", after="reasoning", num_blocks=1))}, "used twice"),
        ({"exits": (*PLAN.exits, PlannedExit(name="a/b", after="reasoning", num_blocks=1))}, "called 'a/b'"),
        ({"exits": (*PLAN.exits, PlannedExit(name="adapter_exit", after="reasoning", num_blocks=1))}, "used twice"),
        ({"exits": (*PLAN.exits, PlannedExit(name="x", after="poetry", num_blocks=1))}, "not 'poetry'"),
        ({"exits": (*PLAN.exits, PlannedExit(name="x", after="adapter", num_blocks=1))}, "not 'adapter'"),
        ({"exits": (*PLAN.exits, PlannedExit(name="x", after="reasoning"))}, "'x' has neither a map nor blocks"),
        ({"exits": PLAN.exits[1:]}, "path 'math' leaves by an unknown exit 'math_exit'"),
        ({"paths": (*PLAN.paths, PLAN.paths[0])}, "the name 'math' is used twice"),
        (
            {"paths": (*PLAN.paths, StudentPath(name="full", modules=("knowledge",), exit="fact_exit"))},
            "'full' is used twice",
        ),
        ({"tasks": {"math": "nowhere"}}, "task 'math' has no path 'nowhere'"),
    ],
)
def test_plan_problems_are_named_with_the_file(
    source: ModelSource, tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    assert find_problems(PLAN) == []
    file = tmp_path / "exits.safetensors"
    with pytest.raises(ConfigError, match=r"exits\.safetensors: .*fenhe distill") as caught:
        write_tiny_exits(file, source, **fields)
    assert problem in caught.value.message
    assert not file.exists()


def rewritten(file: Path, metadata: dict[str, str]) -> Path:
    from safetensors.numpy import load_file, save_file

    save_file(load_file(file), file, metadata=metadata)
    return file


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"other": "{}"}, "is not an exits file"),
        ({"fenhe": "{"}, "its plan cannot be read"),
        ({"fenhe": msgspec.json.encode(msgspec.to_builtins(PLAN) | {"colour": "red"}).decode()}, "colour"),
        ({"fenhe": msgspec.json.encode(msgspec.to_builtins(PLAN) | {"format_version": 9}).decode()}, "9 is not 1"),
    ],
)
def test_read_exits_refuses_what_is_no_plan(exits: Exits, metadata: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"exits\.safetensors.*fenhe distill") as caught:
        read_exits(rewritten(exits.file, metadata))
    assert problem in caught.value.message


def test_read_exits_of_no_file_or_a_damaged_one_names_it(exits: Exits, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is not there"):
        read_exits(tmp_path / "nowhere")
    whole = exits.file.read_bytes()
    for content in (b"", b"plainly no tensors at all", whole[: len(whole) // 2]):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(WeightsError, match="damaged"):
            read_exits(tmp_path / "damaged")


UP = "math_exit.layers.1.mlp.up_proj.weight"


def test_exits_with_wrong_tensors_are_refused_together(source: ModelSource, tmp_path: Path) -> None:
    tensors = random_tensors(source.architecture)
    del tensors[UP]
    tensors["fact_exit.map.bias"] = tensors["fact_exit.map.bias"][:3]
    write_exits(tmp_path / "wrong", plan_for(source), tensors)
    with pytest.raises(WeightsError) as caught:
        read_exits(tmp_path / "wrong").check(source)
    assert f"missing tensors: {UP}" in caught.value.message
    assert "fact_exit.map.bias is [3], not [64]" in caught.value.message
    with pytest.raises(WeightsError, match="missing tensors"):
        read_exits(tmp_path / "wrong").source_for("math_exit", source)
    write_exits(tmp_path / "more", plan_for(source), random_tensors(source.architecture) | {"poetry": np.ones(3)})
    with pytest.raises(WeightsError, match="tensors of no exit: poetry"):
        read_exits(tmp_path / "more").check(source)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_write_exits_refuses_what_fp16_cannot_hold(source: ModelSource, tmp_path: Path, value: float) -> None:
    tensors = random_tensors(source.architecture)
    tensors[UP][3, 4] = value
    with pytest.raises(WeightsError, match=f"{UP} is not finite in fp16"):
        write_exits(tmp_path / "exits", plan_for(source), tensors)
    assert not (tmp_path / "exits").exists()


def test_exits_that_are_not_finite_leave_no_student(exits: Exits, folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(exits.file)
    tensors[UP][0, 0] = np.nan
    save_file(tensors, exits.file, metadata={"fenhe": msgspec.json.encode(exits.plan).decode()})
    with pytest.raises(WeightsError, match=rf"exits.safetensors: tensor {UP} is not finite"):
        build_student(folder, tmp_path / "there" / "out", exits=exits.file, precisions=("fp32",))
    assert not (tmp_path / "there").exists()


def test_build_takes_cut_exits_paths_tasks_and_rules_from_the_file(exits: Exits, folder: Path, tmp_path: Path) -> None:
    manifest = build_student(folder, tmp_path / "out", exits=exits.file, precisions=("fp32",))
    assert read_manifest(tmp_path / "out") == manifest
    assert manifest.exits_sha256 == exits.sha256
    assert [(module.name, module.num_layers) for module in manifest.modules] == [
        ("knowledge", 1),
        ("reasoning", 2),
        ("adapter", 1),
    ]
    assert [(e.name, e.after, e.num_blocks, e.has_map, e.is_trained) for e in manifest.exits] == [
        ("math_exit", "knowledge", 2, True, True),
        ("fact_exit", "knowledge", 0, True, True),
        ("legal_exit", "reasoning", 1, False, True),
        ("adapter_exit", "adapter", 0, False, True),
    ]
    assert [path.name for path in manifest.paths] == ["math", "fact", "riddle", "legal", "full"]
    assert manifest.full_path == StudentPath(
        name=FULL_PATH, modules=("knowledge", "reasoning", "adapter"), exit="adapter_exit"
    )
    assert manifest.tasks == {"math": "math", "fact": "fact", "legal": "legal", "creative": "full", "general": "full"}
    assert manifest.depth_rules == PLAN.depth_rules
    assert manifest.stage_order() == (
        *("knowledge", "math_exit", "fact_exit"),
        *("reasoning", "legal_exit"),
        *("adapter", "adapter_exit"),
    )
    Student.open(tmp_path / "out").verify()


def test_build_of_a_plan_that_names_the_full_path_has_it_once(
    folder: Path, source: ModelSource, tmp_path: Path
) -> None:
    full = StudentPath(name=FULL_PATH, modules=("knowledge", "reasoning", "adapter"), exit="adapter_exit")
    file = write_tiny_exits(tmp_path / "exits", source, paths=(full, *PLAN.paths))
    manifest = build_student(folder, tmp_path / "out", exits=file, precisions=("fp32",))
    assert [path.name for path in manifest.paths] == ["math", "fact", "riddle", "legal", "full"]


def test_build_with_exits_leaves_the_full_path_bit_identical(exits: Exits, folder: Path, tmp_path: Path) -> None:
    cut = "knowledge:1,reasoning:2,adapter:1"
    precisions = ("fp32", "int8", "w8a8", "w8a8-native")
    without = build_student(folder, tmp_path / "without", modules=cut, precisions=precisions)
    trained = build_student(folder, tmp_path / "with", exits=exits.file, precisions=precisions)
    digests = {entry.name: entry.sha256 for entry in trained.files}
    parts = tuple(f"{part}." for part in (*without.stages(without.full_path), "head", "embedding"))
    expected = {entry.name: entry.sha256 for entry in without.files if entry.name.startswith(parts)}
    assert len(expected) == 4 * 5 + 3 * 5 + 2  # graphs, weights of three kinds, tables
    assert {name: digests[name] for name in expected} == expected


def test_build_refuses_exits_of_another_model(exits: Exits, tiny_source: MakeSource, tmp_path: Path) -> None:
    other = tiny_source("llama", intermediate_size=128)
    with pytest.raises(ConfigError, match=r"exits.safetensors: the exits were trained for a model with SHA-256"):
        build_student(other, tmp_path / "out", exits=exits.file)
    assert not (tmp_path / "out").exists()


def test_build_refuses_exits_of_another_depth(folder: Path, source: ModelSource, tmp_path: Path) -> None:
    modules = (*PLAN.modules[:2], PlannedModule(name="adapter", num_layers=2))
    file = write_tiny_exits(tmp_path / "exits", source, modules=modules)
    with pytest.raises(ConfigError, match="exits: its modules have 5 layers, the model has 4"):
        build_student(folder, tmp_path / "out", exits=file)


def test_build_refuses_a_cut_beside_exits(exits: Exits, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --modules or --exits out"):
        build_student(folder, tmp_path / "out", exits=exits.file, modules="knowledge:1,reasoning:3")


def figures(exits_sha256: str, path: str = "math") -> Measured:
    return Measured(
        exits_sha256=exits_sha256,
        quality=(Quality(path=path, variant="fp32", cross_entropy=2.5, text="eval", num_tokens=9),),
        retention=(Retention(path=path, task="math", variant="fp32", score=0.9, low=0.8, high=0.95),),
    )


def test_build_takes_in_figures_of_the_same_exits_alone(exits: Exits, folder: Path, tmp_path: Path) -> None:
    build: Any = lambda out, measured: build_student(  # noqa: E731
        folder, tmp_path / out, exits=exits.file, precisions=("fp32",), measured=measured
    )
    fitting = build("a", figures(exits.sha256))
    assert (len(fitting.quality), len(fitting.retention)) == (1, 1)
    other = build("b", figures("ab" * 32))
    assert (other.quality, other.retention) == ((), ())
    with pytest.raises(ConfigError, match="'poetry' on 'math' at 'fp32': there is no such path"):
        build("c", figures(exits.sha256, "poetry"))
    assert not (tmp_path / "c").exists()


def test_inspect_shows_trained_exits(exits: Exits, folder: Path, tmp_path: Path) -> None:
    build_student(folder, tmp_path / "out", exits=exits.file, precisions=("fp32",))
    lines = [" ".join(line.split()) for line in describe(tmp_path / "out").splitlines()]
    assert f"exits, trained (file with sha256 {exits.sha256[:12]}...)" in lines
    assert "math_exit behind knowledge: map + 2 blocks + norm, trained" in lines
    assert "fact_exit behind knowledge: map + norm, trained" in lines
    assert "legal_exit behind reasoning: 1 block + norm, trained" in lines
    assert "adapter_exit behind adapter: the model's own end" in lines
    assert "math knowledge > math_exit, 1 of 4 layers and 2 exit blocks" in lines


def test_inspect_says_that_exits_are_not_trained(folder: Path, tmp_path: Path) -> None:
    build_student(folder, tmp_path / "out", precisions=("fp32",))
    lines = [" ".join(line.split()) for line in describe(tmp_path / "out").splitlines()]
    assert "knowledge_exit behind knowledge: norm, not trained" in lines
    assert "knowledge knowledge > knowledge_exit, 1 of 4 layers, exit not trained" in lines
