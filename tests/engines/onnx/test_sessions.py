"""Sessions: damaged graphs are refused by name, tables are the rotary ones, bindings follow their buffers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.onnx import sessions
from engines.onnx.sessions import StageSession, Tables, open_session
from engines.onnx.slot_kv import SlotKv
from models.errors import WeightsError
from models.rope import inverse_frequencies


def test_open_session_refuses_a_damaged_graph_by_name(tmp_path: Path) -> None:
    graph = tmp_path / "knowledge.fp32.onnx"
    graph.write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match=r"knowledge\.fp32\.onnx cannot be loaded.*fenhe build"):
        open_session(graph, 1, None)


def test_open_session_refuses_native_graphs_without_their_library(tiny_student: Any) -> None:
    student = tiny_student("llama", ("w8a8-native",)).student
    with pytest.raises(WeightsError, match="cannot be loaded"):
        open_session(student.graph("w8a8-native", "knowledge"), 1, None)


def test_tables_are_cosines_and_sines_of_every_position() -> None:
    tables = Tables(np.array([1.0, 0.25], np.float32), 5)
    assert tables.cos.shape == tables.sin.shape == (5, 2)
    np.testing.assert_allclose(tables.cos[3], np.cos([3.0, 0.75]), rtol=1e-6)
    np.testing.assert_allclose(tables.sin[3], np.sin([3.0, 0.75]), rtol=1e-6)


class Stage:
    """The first module of a tiny student, over two slots."""

    def __init__(self, student: Any) -> None:
        architecture = student.manifest.architecture
        self.kv = SlotKv(
            num_layers=1,
            num_slots=2,
            num_kv_heads=architecture.num_kv_heads,
            capacity=64,
            head_dim=architecture.head_dim,
            dtype="float32",
        )
        session = open_session(student.graph("fp32", "knowledge"), 1, None)
        self.stage = StageSession(session, self.kv, Tables(inverse_frequencies(architecture), 64))

    def run(self, hidden: Any, slot: int = 0) -> Any:
        output = np.empty_like(hidden)
        last = hidden.shape[1] - 1
        self.stage.run(
            hidden,
            output,
            slot=slot,
            last_positions=np.full(len(hidden), last, np.int32),
            total_length=np.array(last + 1, np.int32),
            rows_by_width=np.ones(1, np.int32),
        )
        return output


def random_hidden(seed: int, num_rows: int = 1, num_tokens: int = 4) -> Any:
    return np.random.default_rng(seed).standard_normal((num_rows, num_tokens, 64), np.float32)


def test_stage_session_works_in_place_as_into_another_array(tiny_student: Any) -> None:
    stage = Stage(tiny_student("llama").student)
    hidden = random_hidden(1)
    expected = stage.run(hidden)
    positions, length = np.array([3], np.int32), np.array(4, np.int32)
    rows = np.ones(1, np.int32)
    stage.stage.run(hidden, hidden, slot=0, last_positions=positions, total_length=length, rows_by_width=rows)
    np.testing.assert_array_equal(hidden, expected)


def test_stage_session_writes_kv_of_its_slot_only(tiny_student: Any) -> None:
    stage = Stage(tiny_student("llama").student)
    stage.run(random_hidden(1), slot=1)
    assert stage.kv.read(1, 0, 4).any()
    assert not stage.kv.read(0, 0, 4).any()
    assert not stage.kv.read(1, 4, 4).any()


def test_stage_session_keeps_a_bounded_number_of_bindings(tiny_student: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_CACHED_BINDINGS", 2)
    stage = Stage(tiny_student("llama").student)
    hidden = [random_hidden(seed, num_tokens=seed + 1) for seed in range(5)]
    outputs = [np.empty_like(array) for array in hidden]
    lasts = [np.array([seed], np.int32) for seed in range(5)]
    lengths = [np.array(seed + 1, np.int32) for seed in range(5)]
    rows = np.ones(1, np.int32)
    for index in (0, 1, 2, 3, 4, 3, 0, 4):
        stage.stage.run(
            hidden[index],
            outputs[index],
            slot=0,
            last_positions=lasts[index],
            total_length=lengths[index],
            rows_by_width=rows,
        )
        assert len(stage.stage._bindings) <= 2
        np.testing.assert_array_equal(outputs[index], Stage(tiny_student("llama").student).run(hidden[index]))
