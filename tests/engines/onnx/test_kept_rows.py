"""What nobody reads behind the last layer is not computed, and what is read has the same bits."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.contract import StepInput
from engines.onnx.plan import PrecisionPlan
from engines.onnx.sessions import KeptRows
from models.building.build import build_student
from models.sources.source import open_source
from models.student.folder import Student
from tests.engines.onnx.test_runner import IDS, Tape, chunk
from tests.models.exit_files import write_tiny_exits
from tests.models.width_files import NUM_NEURONS, write_tiny_widths

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native operators are built on Linux")

Float = npt.NDArray[np.float32]
MakeTape = Callable[..., Tape]

MODULES = "knowledge:1,reasoning:2,adapter:1"


@pytest.fixture
def tape(tiny_source: Any, tiny_gguf: Any, native_library: Path, tmp_path: Path) -> MakeTape:
    """`tape(precision, name, kind)`: a runner on a tiny student, plain or with `exits` or `widths`."""

    def make(precision: str = "w8a8-native", name: str = "student", kind: str = "plain") -> Tape:
        folder = tiny_source("llama", intermediate_size=NUM_NEURONS)
        model = tiny_gguf(folder, quantisation="Q4_1") if precision == "gguf-native" else folder
        parts: dict[str, Any] = {"modules": MODULES}
        if kind != "plain":
            write = {"exits": write_tiny_exits, "widths": write_tiny_widths}[kind]
            file = write(tmp_path / f"{name}.safetensors", open_source(folder))
            parts = {kind: file} | (parts if kind == "widths" else {})
        build_student(model, tmp_path / name, precisions=(precision,), **parts)
        library = native_library if precision.endswith("native") else None
        return Tape(Student.open(tmp_path / name), PrecisionPlan(many=precision), library)

    return make


def keeping(tape: Tape) -> set[str]:
    return {stage for (stage, _), session in tape.runner._stages.items() if session.keeps_rows}


@pytest.mark.parametrize(
    ("precision", "kind", "stages"),
    [
        ("w8a8-native", "plain", {"adapter"}),
        ("w8a8-native", "widths", {"adapter"}),
        ("w8a8-native", "exits", {"adapter", "math_exit", "legal_exit"}),
        ("gguf-native", "plain", {"adapter"}),
        ("w8a8", "plain", set()),
    ],
)
def test_last_stages_with_layers_keep_rows(tape: MakeTape, precision: str, kind: str, stages: set[str]) -> None:
    """Of an exit without blocks it is the module before it, if no path goes on from there."""
    assert keeping(tape(precision, kind=kind)) == stages


@pytest.mark.parametrize("shape", [(1, 12), (8, 1)])
@pytest.mark.parametrize(("precision", "kind"), [("w8a8-native", "widths"), ("gguf-native", "plain")])
def test_kept_rows_have_the_bits_they_have_among_all(
    tape: MakeTape, precision: str, kind: str, shape: tuple[int, int]
) -> None:
    """One sequence at the second width, and rows of all four widths."""
    stage = tape(precision, kind=kind).runner._stages["adapter", precision]
    rows_by_width = np.array([0, 1, 1, 1] if shape[0] == 1 else [2, 4, 6, 8], np.int32)
    rows_by_width = rows_by_width if kind == "widths" else rows_by_width[-1:]
    hidden = np.random.default_rng(5).standard_normal((*shape, 64), np.float32)
    kept = np.array([0, 4, 5, 7], np.int32)
    bounds = rows_by_width * np.int32(shape[1])
    by_width = np.array([(kept < bound).sum() for bound in bounds], np.int32)
    outputs = [np.empty_like(hidden), np.empty((4, 1, 64), np.float32)]
    for output, rows in zip(outputs, (None, KeptRows(kept, by_width)), strict=True):
        stage.run(
            hidden,
            output,
            slot=0,
            last_positions=np.full(shape[0], shape[1] - 1, np.int32),
            total_length=np.array(shape[1], np.int32),
            rows_by_width=rows_by_width,
            kept=rows,
        )
    assert outputs[1].tobytes() == outputs[0].reshape(-1, 64)[kept].tobytes()


@pytest.mark.parametrize("precision", ["w8a8-native", "gguf-native"])
def test_a_chunk_that_wants_nothing_writes_the_kv_of_one_that_keeps_its_states(tape: MakeTape, precision: str) -> None:
    made = tape(precision)
    wanting = replace(chunk(0, IDS[:9]), keeps_states=True)
    nothing = chunk(1, IDS[:9], wants=False)
    made.run(prefill=(wanting,))
    states = made.states(wanting)
    assert made.run(prefill=(nothing,)).shape[0] == 0
    for stage in ("knowledge", "reasoning", "adapter"):
        blocks = [made.runner.read_block(stage, slot, 0, 9) for slot in (0, 1)]
        assert blocks[0].tobytes() == blocks[1].tobytes()
    assert made.prefill(0, IDS[9:], start=9).tobytes() == made.prefill(1, IDS[9:], start=9).tobytes()
    alone = tape(precision, "alone")
    assert alone.prefill(0, IDS[:9]).tobytes() == states[-1].tobytes()


def test_chunks_of_every_kind_in_one_pass_have_the_bits_they_have_alone(tape: MakeTape) -> None:
    """One that wants nothing, one that keeps its states, one that wants its last token."""
    joint, alone = tape(), tape(name="alone")
    chunks = (chunk(0, IDS[:5], wants=False), replace(chunk(1, IDS[2:9]), keeps_states=True), chunk(2, IDS[4:14]))
    assert joint.runner._can_join(StepInput(prefill=chunks))
    together = joint.run(prefill=chunks)
    states = joint.states(chunks[1])
    for index, one in enumerate(chunks[1:]):
        assert together[index].tobytes() == alone.run(prefill=(one,))[0].tobytes()
    alone.run(prefill=(chunks[1],))
    assert states.tobytes() == alone.states(chunks[1]).tobytes()
    alone.run(prefill=(chunks[0],))
    later = [("full", 5, 9), ("full", 7, 9), ("full", 10, 9)]
    assert joint.decode(*later).tobytes() == alone.decode(*later).tobytes()


def test_graphs_without_kept_rows_still_run(tape: MakeTape, monkeypatch: pytest.MonkeyPatch) -> None:
    """As students have them that were built before."""
    new = tape()
    monkeypatch.setattr("models.building.build._Build._is_last", lambda *_: False)
    old = tape(name="old")
    assert (keeping(new), keeping(old)) == ({"adapter"}, set())
    assert old.prefill(0, IDS).tobytes() == new.prefill(0, IDS).tobytes()
    assert old.decode(("full", len(IDS), 7)).tobytes() == new.decode(("full", len(IDS), 7)).tobytes()
