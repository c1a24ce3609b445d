"""Multiply-adds and bytes counted by hand."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from models.building.build import build_student
from models.evaluation.compute import (
    compute_share,
    layer_multiply_adds,
    path_bytes,
    path_multiply_adds,
    request_compute_share,
)
from models.student.folder import Student
from models.student.manifest import CheapHead

LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96  # q, k and v, o, feed-forward of the tiny llama
HEAD = 64 * 320


@pytest.fixture
def student(tiny_source: Callable[..., Path], tmp_path: Path) -> Student:
    folder = tmp_path / "student"
    build_student(tiny_source("llama"), folder, modules="knowledge:1,reasoning:2,adapter:1", precisions=("fp32",))
    return Student.open(folder)


def test_multiply_adds_are_matrices_head_and_attention(student: Student) -> None:
    manifest = student.manifest
    assert layer_multiply_adds(manifest.architecture) == LAYER
    assert layer_multiply_adds(manifest.architecture, 10) == LAYER + 2 * 64 * 10
    path = manifest.path("reasoning")
    assert manifest.num_layers_on(path) == 3
    assert path_multiply_adds(manifest, path) == 3 * LAYER + HEAD
    assert compute_share(manifest, path) == pytest.approx((3 * LAYER + HEAD) / (4 * LAYER + HEAD))
    assert compute_share(manifest, manifest.full_path) == 1.0


def test_an_exit_counts_with_its_map_and_blocks(student: Student) -> None:
    manifest = student.manifest
    first, *others = manifest.exits
    trained = msgspec.structs.replace(first, num_blocks=2, has_map=True)
    manifest = msgspec.structs.replace(manifest, exits=(trained, *others))
    path = manifest.path("knowledge")
    assert manifest.num_layers_on(path) == 3
    assert path_multiply_adds(manifest, path) == 3 * LAYER + 64 * 64 + HEAD


def test_bytes_are_those_of_the_stages_and_the_head(student: Student) -> None:
    knowledge, full = (path_bytes(student, student.manifest.path(name), "fp32") for name in ("knowledge", "full"))
    assert full == student.manifest.variant("fp32").weight_bytes
    assert LAYER * 4 + HEAD * 4 <= knowledge < LAYER * 4 + HEAD * 4 + 4096


CHEAP = 8 * (64 + 320) + (16 + 4) * 64


def test_the_cheap_head_counts_its_preview_and_the_tokens_that_it_computes_exactly(student: Student) -> None:
    manifest = msgspec.structs.replace(
        student.manifest, cheap_head=CheapHead(rank=8, num_frequent=16, num_candidates=4, sha256="")
    )
    full = manifest.full_path
    assert path_multiply_adds(manifest, full, head="cheap") == 4 * LAYER + CHEAP
    assert compute_share(manifest, full, head="cheap") == pytest.approx((4 * LAYER + CHEAP) / (4 * LAYER + HEAD))
    assert compute_share(manifest, full) == 1.0


def test_the_cheap_head_counts_the_candidates_that_it_needs_on_average(student: Student) -> None:
    cheap = CheapHead(rank=8, num_frequent=16, num_candidates=40, mean_candidates=3.8, sha256="")
    manifest = msgspec.structs.replace(student.manifest, cheap_head=cheap)
    assert path_multiply_adds(manifest, manifest.full_path, head="cheap") == 4 * LAYER + CHEAP


def test_prompt_tokens_of_a_request_need_no_head(student: Student) -> None:
    manifest = student.manifest
    share = request_compute_share(
        manifest, manifest.path("reasoning"), "exact", num_prompt_tokens=30, num_answer_tokens=10
    )
    assert share == pytest.approx((40 * 3 * LAYER + 10 * HEAD) / (40 * 4 * LAYER + 10 * HEAD))
    full = request_compute_share(manifest, manifest.full_path, "exact", num_prompt_tokens=30, num_answer_tokens=10)
    assert full == 1.0
