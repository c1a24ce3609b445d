"""A student folder opens only when it is whole, and a single flipped bit is seen before anything is loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.building.build import build_student
from models.errors import ConfigError, WeightsError
from models.student.folder import HEAD, Student
from models.student.manifest import MANIFEST_NAME, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path, tiny_source: Callable[..., Path]) -> Path:
    out = tmp_path / "student"
    build_student(tiny_source("llama"), out, precisions=("fp32", "w8a8"))
    return out


def test_student_opens_and_verifies(folder: Path) -> None:
    student = Student.open(folder)
    student.verify()
    assert student.tokenizer.decode(student.tokenizer.encode("the quick fox")) == "the quick fox"


def test_student_knows_its_graphs(folder: Path) -> None:
    student = Student.open(folder)
    for variant in ("fp32", "w8a8"):
        graphs = {student.graph(variant, stage) for stage in (*student.manifest.stage_order(), HEAD)}
        assert len(graphs) == 7
        assert all(graph.is_file() for graph in graphs)
    with pytest.raises(ConfigError, match="no precision 'int3', only fp32, w8a8"):
        student.graph("int3", HEAD)


def test_student_embeddings_are_mapped_and_of_the_variants_basis(folder: Path) -> None:
    student = Student.open(folder)
    plain, rotated = student.embedding("fp32"), student.embedding("w8a8")
    assert isinstance(plain, np.memmap)
    assert plain.shape == rotated.shape == (320, 64)
    assert not np.allclose(plain, rotated, atol=0.1)
    # Another orthogonal basis: lengths and angles stay.
    np.testing.assert_allclose(plain @ plain.T, rotated @ rotated.T, atol=1e-4)


def test_student_without_a_manifest_is_none(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(ConfigError, match="is not a student folder"):
        Student.open(folder)


def weights_file(folder: Path) -> Path:
    return max(folder.glob("*.weights"), key=lambda file: file.stat().st_size)


def test_student_with_a_missing_file_names_it(folder: Path) -> None:
    file = weights_file(folder)
    file.unlink()
    with pytest.raises(WeightsError, match=f"{file.name} is missing"):
        Student.open(folder)


def test_student_with_a_short_file_names_it_and_both_sizes(folder: Path) -> None:
    file = weights_file(folder)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=f"{file.name} has {size - 1} bytes instead of {size}"):
        Student.open(folder)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("pattern", ["*.weights", "head.*.onnx", "embedding.npy"])
@pytest.mark.parametrize("anew", [False, True])
def test_student_verify_finds_a_flipped_bit(folder: Path, pattern: str, anew: bool) -> None:
    file = sorted(folder.glob(pattern))[0]
    flip(file)
    with pytest.raises(WeightsError, match=f"{file.name} is damaged"):
        Student.open(folder).verify(anew=anew)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_student_with_a_damaged_tokenizer_does_not_open(folder: Path, name: str) -> None:
    flip(folder / name)
    with pytest.raises(WeightsError, match=rf"{name} is damaged.*fenhe build"):
        Student.open(folder)


def test_student_gives_no_graph_whose_weights_are_damaged(folder: Path) -> None:
    student = Student.open(folder)
    flip(folder / "adapter.w8a8.weights")
    flip(folder / "knowledge.fp32.onnx")
    with pytest.raises(WeightsError, match=r"adapter\.w8a8\.weights is damaged"):
        student.whole_graph("w8a8", "adapter")
    with pytest.raises(WeightsError, match=r"knowledge\.fp32\.onnx is damaged"):
        student.whole_graph("fp32", "knowledge")
    for variant, stage in (("fp32", "adapter"), ("w8a8", "knowledge"), ("fp32", HEAD), ("w8a8", HEAD)):
        assert student.whole_graph(variant, stage) == student.graph(variant, stage)
    unverified = Student.open(folder, verify=False)
    assert not unverified.is_verified
    assert unverified.whole_graph("w8a8", "adapter") == student.graph("w8a8", "adapter")


def test_student_gives_no_embedding_that_is_damaged(folder: Path) -> None:
    student = Student.open(folder)
    flip(folder / "embedding.rotated.npy")
    with pytest.raises(WeightsError, match=r"embedding\.rotated\.npy is damaged"):
        student.embedding("w8a8")
    assert student.embedding("fp32").shape == (320, 64)


def test_student_of_equal_size_gives_no_file_of_another(
    folder: Path, tmp_path: Path, tiny_source: Callable[..., Path]
) -> None:
    build_student(tiny_source("llama", rope_theta=5000.0), tmp_path / "other", precisions=("fp32",))
    graph, other = folder / "knowledge.fp32.weights", tmp_path / "other" / "adapter.fp32.weights"
    graph.write_bytes(other.read_bytes()[: graph.stat().st_size].ljust(graph.stat().st_size, b"\0"))
    with pytest.raises(WeightsError, match="is damaged"):
        Student.open(folder).whole_graph("fp32", "knowledge")


def test_student_whose_manifest_lists_fewer_files_gives_none_of_the_others(folder: Path) -> None:
    manifest = read_manifest(folder)
    kept = tuple(entry for entry in manifest.files if entry.name != "head.fp32.onnx")
    write_manifest(folder, msgspec.structs.replace(manifest, files=kept))
    with pytest.raises(WeightsError, match=r"head\.fp32\.onnx has no checksum"):
        Student.open(folder).whole_graph("fp32", HEAD)


def test_student_keeps_the_embedding_it_has_mapped_when_the_file_is_replaced(folder: Path) -> None:
    student = Student.open(folder)
    mapped = student.embedding("fp32")
    before = np.array(mapped)
    file = folder / "embedding.npy"
    shutil.copy(file, folder / "new.npy")
    flip(folder / "new.npy")
    (folder / "new.npy").replace(file)
    np.testing.assert_array_equal(mapped, before)
    for one in (student, Student.open(folder)):
        with pytest.raises(WeightsError, match=r"embedding\.npy is damaged"):
            one.embedding("fp32")
