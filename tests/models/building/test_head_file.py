"""A head file reads back as it was written, or is refused by name; a student built with it has a cheap head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.building.build import build_student
from models.building.head_file import HeadFile, HeadPlan, read_head_file, write_head_file
from models.errors import ConfigError, WeightsError
from models.evaluation.compute import path_bytes
from models.graphs.cheap_head import HEAD_BIAS, HEAD_PREVIEW
from models.graphs.decoder_graph import head_weight
from models.graphs.rotate import FINAL_NORM, HEAD_PROJECT, RotatedSource, rotation
from models.sources.source import ModelSource, open_source
from models.student.folder import CHEAP_HEAD, Student
from models.student.manifest import Measured, PathFigures

MakeSource = Callable[..., Path]
HIDDEN, VOCAB, RANK = 64, 320, 8


@pytest.fixture
def folder(tiny_source: MakeSource) -> Path:
    return tiny_source("llama")


@pytest.fixture
def source(folder: Path) -> ModelSource:
    return open_source(folder)


def tensors(rank: int = RANK, hidden: int = HIDDEN) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    shapes = {"project": (rank, hidden), "expand": (rank, hidden), "bias": (VOCAB,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def plan_of(source: ModelSource, **changes: Any) -> HeadPlan:
    plan = HeadPlan(source_sha256=source.sha256(), num_candidates=16, reach=10.0, frequent=tuple(range(5, 25)))
    return msgspec.structs.replace(plan, **changes)


def head_file(source: ModelSource, file: Path, stored: dict[str, Any] | None = None, **changes: Any) -> HeadFile:
    write_head_file(file, plan_of(source, **changes), stored or tensors())
    return read_head_file(file)


def test_a_head_survives_its_file_and_has_the_same_bytes_again(source: ModelSource, tmp_path: Path) -> None:
    head = head_file(source, tmp_path / "head")
    assert head.plan == plan_of(source)
    head.check(source)
    record = head.record()
    assert (record.rank, record.num_frequent, record.num_candidates) == (RANK, 20, 16)
    assert record.sha256 == head_file(source, tmp_path / "again").sha256


def test_preview_is_what_the_docstring_says(source: ModelSource, tmp_path: Path) -> None:
    view = head_file(source, tmp_path / "head").source_for(source)
    stored, exact = tensors(), source.read(head_weight(source))
    x = np.random.default_rng(1).standard_normal((3, HIDDEN)).astype(np.float32)
    expected = (x @ stored["project"].T) @ (exact @ stored["expand"].T).T + stored["bias"]
    got = (x @ view.read(HEAD_PROJECT).T) @ view.read(HEAD_PREVIEW).T + view.read(HEAD_BIAS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert view.shape(HEAD_PREVIEW) == (VOCAB, RANK)
    assert view.shape(HEAD_BIAS) == (VOCAB,)
    assert {HEAD_PROJECT, HEAD_PREVIEW, HEAD_BIAS} < view.tensor_names()


def test_the_rotated_projection_reads_rotated_states(source: ModelSource, tmp_path: Path) -> None:
    view = head_file(source, tmp_path / "head").source_for(source)
    unit = np.random.default_rng(1).standard_normal((3, HIDDEN)).astype(np.float32)  # normed, without the norm's weight
    plain = (unit * source.read(FINAL_NORM)) @ view.read(HEAD_PROJECT).T
    rotated = (unit @ rotation(HIDDEN)) @ RotatedSource(view).read(HEAD_PROJECT).T
    np.testing.assert_allclose(rotated, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stored", "changes", "message"),
    [
        (tensors(rank=68), {}, "rank 68 must be from 4 to the hidden size, 64"),
        (tensors(rank=6), {}, "rank 6 must be a multiple of 4"),
        (tensors(hidden=60), {}, r"project is \[8, 60\], not \[8, 64\]"),
        ({**tensors(), "bias": np.zeros(64, np.float32)}, {}, r"bias is \[64\], not \[320\]"),
        ({**tensors(), "bias": np.full(VOCAB, np.nan, np.float32)}, {}, "bias is not finite"),
        (tensors(), {"frequent": (1, 1)}, "different ids from 0 to 319"),
        (tensors(), {"frequent": (1, 320)}, "different ids from 0 to 319"),
        (tensors(), {"frequent": ()}, "at least one"),
        (tensors(), {"num_candidates": 301}, "20 frequent tokens and 301 candidates are more than the vocabulary, 320"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_name(
    source: ModelSource, tmp_path: Path, stored: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    head = head_file(source, tmp_path / "head", stored, **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        head.check(source)
    assert str(head.file) in str(caught.value)
    assert "fenhe head" in str(caught.value)


def test_a_head_of_another_model_is_refused(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fitted to a model with SHA-256 abc"):
        head_file(source, tmp_path / "head", source_sha256="abc" * 20).check(source)


def test_files_that_are_no_head_are_refused(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        read_head_file(tmp_path / "none")
    (tmp_path / "short").write_bytes(head_file(source, tmp_path / "head").file.read_bytes()[:400])
    with pytest.raises(WeightsError, match=r"cut short|damaged"):
        read_head_file(tmp_path / "short")
    write_head_file(tmp_path / "newer", plan_of(source, format_version=3), tensors())
    with pytest.raises(ConfigError, match="format_version 3 is not 2"):
        read_head_file(tmp_path / "newer")


@pytest.fixture
def student(source: ModelSource, folder: Path, tmp_path: Path) -> Student:
    head = head_file(source, tmp_path / "head").file
    build_student(folder, tmp_path / "student", precisions=("w8a8-native", "w8a8", "fp32"), head=head)
    return Student.open(tmp_path / "student")


def test_only_native_precisions_have_a_cheap_head(student: Student) -> None:
    variants = {variant.name: variant for variant in student.manifest.variants}
    assert variants["w8a8-native"].cheap_head == "cheap_head.w8a8-native.onnx"
    assert variants["w8a8"].cheap_head is None
    assert variants["w8a8-native"].weight_bytes > variants["w8a8"].weight_bytes
    assert student.graph("w8a8-native", CHEAP_HEAD).is_file()
    with pytest.raises(ConfigError, match="no cheap head at precision 'fp32'; build it with `fenhe build --head`"):
        student.graph("fp32", CHEAP_HEAD)


def test_a_damaged_head_stops_a_build(folder: Path, source: ModelSource, tmp_path: Path) -> None:
    head = head_file(source, tmp_path / "head", tensors(rank=68)).file
    with pytest.raises(WeightsError, match="rank 68"):
        build_student(folder, tmp_path / "student", head=head)
    assert not (tmp_path / "student").exists()


def test_figures_of_another_head_are_left_out(folder: Path, source: ModelSource, tmp_path: Path) -> None:
    head = head_file(source, tmp_path / "head")
    figures = PathFigures(path="full", head="cheap", task="math", variant="fp32", language="en", kl=0.5)
    for sha256, kept in ((head.sha256, (figures,)), ("other", ())):
        measured = Measured(exits_sha256="", figures=(figures,), cheap_head_sha256=sha256)
        manifest = build_student(
            folder, tmp_path / sha256, precisions=("w8a8-native", "fp32"), head=head.file, measured=measured
        )
        assert manifest.figures == kept


def test_bytes_with_the_cheap_head_are_those_of_both_heads(source: ModelSource, folder: Path, tmp_path: Path) -> None:
    head = head_file(source, tmp_path / "head.safetensors")
    build_student(folder, tmp_path / "out", modules="first:2,second:2", precisions=("w8a8-native",), head=head.file)
    student = Student.open(tmp_path / "out")
    full, variant = student.manifest.full_path, student.manifest.variants[0]
    exact, both = (path_bytes(student, full, variant.name, kind) for kind in ("exact", "cheap"))
    assert both - exact >= RANK * (HIDDEN + VOCAB) + HIDDEN * VOCAB
    assert both == variant.weight_bytes
