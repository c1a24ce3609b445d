"""A student folder opens only when it is whole, and `verify` sees a single flipped bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.building.build import build_student
from models.errors import ConfigError, WeightsError
from models.student.folder import HEAD, Student
from models.student.manifest import MANIFEST_NAME


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


@pytest.mark.parametrize("pattern", ["*.weights", "head.*.onnx", "embedding.npy", "tokenizer.json"])
def test_student_verify_finds_a_flipped_bit(folder: Path, pattern: str) -> None:
    file = sorted(folder.glob(pattern))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    student: Any = None
    try:
        student = Student.open(folder)
    except ConfigError:
        assert pattern == "tokenizer.json"
        return
    with pytest.raises(WeightsError, match=f"{file.name} is damaged"):
        student.verify()
