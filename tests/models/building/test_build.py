"""`build_student` makes a whole student or nothing, and what it writes stands on its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from models.building import build
from models.building.build import build_student
from models.building.recommended_sampling import BY_SHA256
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.graphs.precisions import PRECISIONS
from models.graphs.rotate import RotatedSource, hadamard, hadamard_size, rotation
from models.sampling import RecommendedSampling
from models.sources.source import open_source
from models.student.cut import FULL_PATH, TASKS
from models.student.folder import Student
from models.student.inspect import describe
from models.student.manifest import read_manifest

MakeSource = Callable[..., Path]


FOR_ANY_MODEL = tuple(name for name, precision in PRECISIONS.items() if not precision.keeps_blocks)


def build_tiny(tiny_source: MakeSource, out: Path, **options: Any) -> Student:
    build_student(tiny_source("llama"), out, **options)
    return Student.open(out)


def test_build_writes_the_manifest_it_returns(tiny_source: MakeSource, tmp_path: Path) -> None:
    source = tiny_source("qwen3")
    manifest = build_student(source, tmp_path / "out", name="mine", precisions=("fp32",))
    assert read_manifest(tmp_path / "out") == manifest
    assert manifest.name == "mine"
    assert manifest.source == "model.safetensors"
    assert manifest.source_sha256 == sha256_of([source / "model.safetensors"])
    assert manifest.architecture == open_source(source).architecture
    assert [(module.name, module.num_layers) for module in manifest.modules] == [
        ("knowledge", 1),
        ("reasoning", 2),
        ("adapter", 1),
    ]


def test_build_keeps_the_sampling_that_the_model_recommends(tiny_source: MakeSource, tmp_path: Path) -> None:
    source = tiny_source("llama")
    assert build_student(source, tmp_path / "without", precisions=("fp32",)).sampling is None
    (source / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 3}')
    build_student(source, tmp_path / "out", precisions=("fp32",))
    assert read_manifest(tmp_path / "out").sampling == RecommendedSampling(temperature=0.6)
    assert "recommended sampling: temperature 0.6\n" in describe(tmp_path / "out")
    assert "recommended sampling: none\n" in describe(tmp_path / "without")


def test_build_knows_what_the_default_models_card_recommends(
    tiny_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_source("llama")
    card = RecommendedSampling(temperature=0.2, top_p=0.9)
    monkeypatch.setitem(BY_SHA256, sha256_of([source / "model.safetensors"]), card)
    assert build_student(source, tmp_path / "card", precisions=("fp32",)).sampling == card
    (source / "generation_config.json").write_text('{"temperature": 0.6}')
    own = build_student(source, tmp_path / "own", precisions=("fp32",)).sampling
    assert own == RecommendedSampling(temperature=0.6)


def test_build_sends_every_task_to_full_depth_until_exits_are_trained(tiny_source: MakeSource, tmp_path: Path) -> None:
    manifest = build_tiny(tiny_source, tmp_path / "out", precisions=("fp32",)).manifest
    assert manifest.tasks == dict.fromkeys(TASKS, FULL_PATH)
    assert [rule.path for rule in manifest.depth_rules] == [FULL_PATH]


def test_build_lists_every_file_with_its_true_size_and_digest(tiny_source: MakeSource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    student = build_tiny(tiny_source, out, precisions=FOR_ANY_MODEL)
    assert {entry.name for entry in student.manifest.files} | {"manifest.json"} == {f.name for f in out.iterdir()}
    for entry in student.manifest.files:
        assert (entry.size_bytes, entry.sha256) == ((out / entry.name).stat().st_size, sha256_of([out / entry.name]))
    for variant in student.manifest.variants:
        files = out.glob(f"*.{PRECISIONS[variant.name].weights}.weights")
        assert variant.weight_bytes == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("precision", ["fp32", "int8", "w8a8"])
def test_build_puts_aligned_weights_within_their_files(tiny_source: MakeSource, tmp_path: Path, precision: str) -> None:
    student = build_tiny(tiny_source, tmp_path / "out", precisions=(precision,))
    for stage in (*student.manifest.stage_order(), "head"):
        model = onnx.load(student.graph(precision, stage), load_external_data=False)
        for tensor in model.graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                info = external_data_helper.ExternalDataInfo(tensor)
                assert info.offset is not None
                assert info.length is not None
                assert info.offset % 64 == 0
                assert (student.folder / info.location).stat().st_size >= info.offset + info.length


def test_build_is_the_same_every_time(tiny_source: MakeSource, tmp_path: Path) -> None:
    source = tiny_source("qwen2")
    first, second = (build_student(source, tmp_path / out, name="n", precisions=("w8a8",)) for out in ("a", "b"))
    assert first == second


def test_build_of_gguf_and_folder_give_the_same_weights(
    tiny_source: MakeSource, tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_source("llama")
    manifests = [
        build_student(source, tmp_path / str(index), precisions=("fp32",))
        for index, source in enumerate((folder, tiny_gguf(folder)))
    ]
    digests = [{f.name: f.sha256 for f in m.files if f.name.endswith(".weights")} for m in manifests]
    assert digests[0] == digests[1]


def test_build_shares_weights_between_precisions_that_name_the_same(tiny_source: MakeSource, tmp_path: Path) -> None:
    both = build_tiny(tiny_source, tmp_path / "both", precisions=("w8a8", "w8a8-native"))
    one = build_tiny(tiny_source, tmp_path / "one", precisions=("w8a8",))
    sizes = [{f.name: f.size_bytes for f in s.manifest.files if f.name.endswith(".weights")} for s in (both, one)]
    assert sizes[0].keys() == sizes[1].keys()
    assert sum(sizes[0].values()) < 1.05 * sum(sizes[1].values())


def test_build_with_modules_of_ones_own(tiny_source: MakeSource, tmp_path: Path) -> None:
    student = build_tiny(tiny_source, tmp_path / "out", modules="front:3,back:1", precisions=("fp32",))
    assert [path.name for path in student.manifest.paths] == ["front", "full"]


def test_build_refuses_an_out_that_is_there(tiny_source: MakeSource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is in the way"):
        build_student(tiny_source("llama"), out)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": ("fp32", "int3")}, "no int3; there are fp32"),
        ({"precisions": ()}, "no precision given"),
        ({"precisions": ("w8a8", "int4")}, "--precision: int4 was removed: .*gguf-native.*; there are fp32"),
        ({"modules": "a:2,b:3"}, "has 5 layers, the model has 4"),
        ({"modules": "a"}, "NAME:LAYERS"),
    ],
)
def test_build_refuses_wrong_options(
    tiny_source: MakeSource, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    out = tmp_path / "there" / "out"
    with pytest.raises(ConfigError, match=message):
        build_student(tiny_source("llama"), out, **options)
    assert not out.parent.exists()


def test_build_of_an_incomplete_model_leaves_nothing(tiny_source: MakeSource, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = tiny_source("llama")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(WeightsError, match=r"layers\.2\.mlp\.up_proj"):
        build_student(source, tmp_path / "there" / "out")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_build_interrupted_leaves_no_folder(
    tiny_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    parent = tmp_path / "there"
    monkeypatch.setattr(build, "write_manifest", fail)
    with pytest.raises(type(error)):
        build_student(tiny_source("llama"), parent / "out", precisions=("fp32",))
    assert list(parent.iterdir()) == []


def test_build_needs_its_source_no_more_once_it_is_done(tiny_source: MakeSource, tmp_path: Path) -> None:
    source = tiny_source("llama")
    build_student(source, tmp_path / "out", precisions=("fp32",))
    shutil.rmtree(source)
    Student.open(tmp_path / "out").verify()


@pytest.mark.parametrize("size", [64, 576, 96])
def test_rotation_is_orthogonal_and_spreads_a_channel(size: int) -> None:
    matrix = rotation(size).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)
    assert np.abs(matrix).max() < 2 / np.sqrt(size)


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_hadamard_is_its_own_inverse(size: int) -> None:
    np.testing.assert_allclose(hadamard(size) @ hadamard(size), np.eye(size), atol=1e-6)


@pytest.mark.parametrize(("width", "size"), [(1536, 64), (96, 4), (20, 1), (4864, 64), (17, 1)])
def test_hadamard_size_divides_the_width(width: int, size: int) -> None:
    assert hadamard_size(width) == size


def test_rotated_source_has_plain_norms_and_an_untied_head(tiny_source: MakeSource) -> None:
    source = RotatedSource(open_source(tiny_source("llama", tie_word_embeddings=True)))
    assert not source.architecture.has_tied_head
    assert (source.read("model.norm.weight") == 1).all()
    assert (source.read("model.layers.0.input_layernorm.weight") == 1).all()
    assert source.read("lm_head.weight").shape == source.shape("lm_head.weight") == (320, 64)
