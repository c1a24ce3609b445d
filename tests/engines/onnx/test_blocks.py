"""`gguf-native`: the blocks of a GGUF file through the runner, against the same weights dequantised."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.contract import DecodeRow, PrefillChunk, StepInput
from engines.onnx.packed_weights import read_packed
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from models.building.build import build_student
from models.errors import WeightsError
from models.graphs.block_layout import HEADER_BYTES
from models.student.folder import HEAD, Student
from models.student.row_table import RowTable

Logits = npt.NDArray[np.float32]
NAME = "gguf-native"
IDS = (1, 5, 9, 2, 7, 3)
FAMILIES = [
    pytest.param("llama", "Q4_1", {"tie_word_embeddings": True, "attention_bias": True}, id="llama-tied-Q4_1"),
    pytest.param("qwen2", "Q8_0", {}, id="qwen2-Q8_0"),
    pytest.param("qwen3", "Q4_0", {"tie_word_embeddings": False}, id="qwen3-Q4_0"),
]


@dataclass(slots=True, kw_only=True, frozen=True)
class Built:
    folder: Path
    library: Path

    def runner(self, precision: str = NAME) -> OnnxRunner:
        limits = RunnerLimits(num_slots=4, capacity_tokens=64, num_threads=2, library=self.library)
        student = Student.open(self.folder)
        runner = OnnxRunner(student, PrecisionPlan(many=precision), limits)
        for stage in (*student.manifest.stage_order(), HEAD):
            runner.load(stage)
        return runner


@pytest.fixture
def build(tiny_source: Any, tiny_gguf: Any, native_library: Path, tmp_path: Path) -> Callable[..., Built]:
    def make(family: str = "llama", kind: str = "Q4_1", precisions: tuple[str, ...] = (NAME,), **config: Any) -> Built:
        file = tiny_gguf(tiny_source(family, **config), quantisation=kind)
        build_student(file, tmp_path / "student", modules="knowledge:1,reasoning:2,adapter:1", precisions=precisions)
        return Built(folder=tmp_path / "student", library=native_library)

    return make


def prefill(runner: OnnxRunner, ids: tuple[int, ...] = IDS, path: str = "full", slot: int = 0) -> Logits:
    chunk = PrefillChunk(slot=slot, path=path, start=0, token_ids=ids, wants_logits=True)
    return np.array(runner.forward(StepInput(prefill=(chunk,))))


@pytest.mark.parametrize(("family", "kind", "config"), FAMILIES)
def test_logits_are_those_of_the_dequantised_weights(
    build: Callable[..., Built], family: str, kind: str, config: dict[str, Any]
) -> None:
    built = build(family, kind, (NAME, "fp32"), **config)
    blocks, exact = built.runner(), built.runner("fp32")
    for path in ("knowledge", "full"):
        got, expected = prefill(blocks, path=path), prefill(exact, path=path)
        assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.995
    row = DecodeRow(path="full", position=len(IDS), token_id=4)
    got, expected = (np.array(one.forward(StepInput(decode=(row,)))) for one in (blocks, exact))
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.995


def test_a_row_has_the_bits_it_has_alone(build: Callable[..., Built]) -> None:
    runner = build().runner()
    prompts = (IDS, (3, 3, 8), (2, 9, 9, 1), (7, 6))
    for slot, ids in enumerate(prompts):
        prefill(runner, ids, slot=slot)
    rows = tuple(DecodeRow(path="full", position=len(ids), token_id=slot + 1) for slot, ids in enumerate(prompts))
    together = np.array(runner.forward(StepInput(decode=rows)))
    for count in range(1, len(rows)):
        some = np.array(runner.forward(StepInput(decode=rows[:count])))
        assert some.tobytes() == together[:count].tobytes()


def test_rows_and_prompts_of_one_pass_have_the_bits_they_have_apart(build: Callable[..., Built]) -> None:
    built = build("qwen2", "Q8_0")
    joint, apart = built.runner(), built.runner()
    for runner in (joint, apart):
        prefill(runner, slot=0)
        prefill(runner, IDS[:3], path="knowledge", slot=1)
    rows = (
        DecodeRow(path="full", position=len(IDS), token_id=4),
        DecodeRow(path="knowledge", position=3, token_id=8),
    )
    prompts = tuple(
        PrefillChunk(slot=slot, path=path, start=0, token_ids=ids, wants_logits=True)
        for slot, path, ids in ((2, "knowledge", IDS), (3, "full", IDS[:1]))
    )
    together = np.array(joint.forward(StepInput(decode=rows, prefill=prompts)))
    each = [StepInput(decode=rows), *(StepInput(prefill=(one,)) for one in prompts)]
    assert together.tobytes() == np.concatenate([apart.forward(step).copy() for step in each]).tobytes()


def test_weights_are_in_memory_once(build: Callable[..., Built]) -> None:
    """No graph has a matrix, and no other file: all that a stage multiplies is in its packed file."""
    folder = build().folder
    student = Student.open(folder)
    (variant,) = student.manifest.variants
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert {name for name in sizes if name.endswith(".weights")} == {
        f"{stage}.gguf.weights" for stage in (*student.manifest.stage_order(), HEAD)
    }
    assert max(sizes[name] for name in (*variant.stages.values(), variant.head)) < 10_000
    assert variant.embedding == "embedding.rows"
    assert read_packed(student, NAME, "knowledge_exit") is None


def test_embeddings_are_those_of_the_file(build: Callable[..., Built]) -> None:
    student = Student.open(build(precisions=(NAME, "fp32")).folder)
    table, expected = student.embedding_table(NAME), student.embedding("fp32")
    assert table.shape == expected.shape
    np.testing.assert_allclose(table[[3, 0, 3, 7]], expected[[3, 0, 3, 7]], rtol=1e-6, atol=1e-7)
    with pytest.raises(IndexError, match="no row"):
        table[[len(expected)]]


@pytest.mark.parametrize("stage", ["reasoning", HEAD])
def test_weights_of_another_student_are_refused(build: Callable[..., Built], stage: str) -> None:
    built = build()
    file = built.folder / f"{stage}.gguf.weights"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(WeightsError, match=f"{file.name} is damaged"):
        built.runner()


def test_weights_that_are_cut_short_are_refused(build: Callable[..., Built]) -> None:
    built = build()
    student = Student.open(built.folder, verify=False)
    file = built.folder / "reasoning.gguf.weights"
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 100)
    with pytest.raises(WeightsError, match=f"{file.name} has {size - 100} bytes instead of {size}"):
        read_packed(student, NAME, "reasoning")
    file.unlink()
    with pytest.raises(WeightsError, match=f"{file.name} cannot be read"):
        read_packed(student, NAME, "reasoning")


def test_files_that_are_cut_short_under_a_running_student_end_nothing(build: Callable[..., Built]) -> None:
    """Matrices are in memory; embeddings that are gone are an error that names the file."""
    built = build()
    runner = built.runner()
    expected = prefill(runner)
    for file in built.folder.glob("*.weights"):
        file.write_bytes(b"")
    assert prefill(runner).tobytes() == expected.tobytes()
    with (built.folder / "embedding.rows").open("r+b") as stream:
        stream.truncate(HEADER_BYTES + 10)
    with pytest.raises(WeightsError, match=r"embedding\.rows is damaged or cut short"):
        prefill(runner)


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "embedding.rows"
    for content in (b"", b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=r"embedding\.rows is no table of embeddings"):
            RowTable(file)
