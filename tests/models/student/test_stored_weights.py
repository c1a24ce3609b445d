"""Weights read back from a student's graphs: those that it was built from, in the order of its widths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.building.build import build_student
from models.building.head_file import HeadPlan, read_head_file, write_head_file
from models.building.width_file import read_width_file
from models.errors import ConfigError, WeightsError
from models.graphs.rotate import FINAL_NORM
from models.sources.source import expected_shapes, open_source
from models.student.folder import Student
from models.student.stored_weights import StoredHead, StoredWeights
from tests.models.width_files import NUM_NEURONS, write_tiny_widths

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {}),
]


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_stored_weights_are_those_of_the_source(
    family: str, config: dict[str, Any], tiny_source: Any, tmp_path: Path
) -> None:
    folder = tiny_source(family, **config)
    source = open_source(folder)
    build_student(folder, tmp_path / "student", precisions=("fp32",))
    stored = StoredWeights(Student.open(tmp_path / "student"))
    assert stored.tensor_names() == frozenset(expected_shapes(source.architecture))
    for name in stored.tensor_names():
        np.testing.assert_array_equal(stored.read(name), source.read(name), err_msg=name)
    assert stored.places(0) is None


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_stored_weights_of_widths_come_in_their_order(family: str, tiny_source: Any, tmp_path: Path) -> None:
    folder = tiny_source(family, intermediate_size=NUM_NEURONS)
    widths = read_width_file(write_tiny_widths(tmp_path / "widths", open_source(folder)))
    build_student(folder, tmp_path / "student", widths=widths.file, precisions=("fp32",))
    source, stored = widths.source_for(open_source(folder)), StoredWeights(Student.open(tmp_path / "student"))
    assert stored.tensor_names() == source.tensor_names()
    for name in sorted(source.tensor_names()):
        np.testing.assert_array_equal(stored.read(name), source.read(name), err_msg=name)
    places = stored.places(2)
    assert places is not None
    np.testing.assert_array_equal(places, np.argsort(widths.order(2)))


def test_a_student_without_fp32_is_refused_with_the_fix(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("int8",))
    with pytest.raises(
        ConfigError, match="has no fp32 weights, only int8; build it with `fenhe build --precision fp32`"
    ):
        StoredWeights(Student.open(tmp_path / "student"))


def test_a_name_that_is_not_there_is_an_error(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    with pytest.raises(WeightsError, match=r"has no model\.layers\.0\.self_attn\.q_norm\.weight"):
        StoredWeights(Student.open(tmp_path / "student")).read("model.layers.0.self_attn.q_norm.weight")


def test_the_cheap_head_is_read_back_in_the_models_own_basis(tiny_source: Any, tmp_path: Path) -> None:
    folder = tiny_source("llama")
    source = open_source(folder)
    random, hidden = np.random.default_rng(5), source.architecture.hidden_size
    tensors = {
        "project": random.normal(size=(8, hidden)).astype(np.float32),
        "expand": random.normal(size=(8, hidden)).astype(np.float32),
        "bias": random.normal(size=source.architecture.vocab_size).astype(np.float32),
    }
    plan = HeadPlan(source_sha256=source.sha256(), num_candidates=12, reach=3.5, frequent=(4, 9, 7))
    write_head_file(tmp_path / "head", plan, tensors)
    build_student(folder, tmp_path / "student", head=tmp_path / "head", precisions=("fp32", "w8a8-native"))
    student = Student.open(tmp_path / "student")
    weights = StoredWeights(student)
    head = StoredHead(student, weights.read)
    wanted = read_head_file(tmp_path / "head").source_for(source)
    found = head.candidates
    assert (tuple(found.frequent), found.num_candidates, found.reach) == ((4, 9, 7), 12, 3.5)
    for name, values in head.tensors().items():
        expected = wanted.read(name)
        np.testing.assert_allclose(values, expected, atol=0.02 * np.abs(expected).max(), err_msg=name)
    assert np.ptp(source.read(FINAL_NORM)) > 0


def test_a_student_without_a_cheap_head_says_how_to_get_one(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    student = Student.open(tmp_path / "student")
    with pytest.raises(ConfigError, match="has no cheap head; build it with `fenhe build --head FILE`"):
        StoredHead(student, StoredWeights(student).read)
