"""Whole texts stage by stage against the torch reference, and pieces of them against the whole."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from models.student.folder import HEAD, Student

IDS = (1, 40, 300, 7, 7, 120, 319, 64, 5, 90)


@pytest.fixture
def tiny(tiny_student: Callable[..., Any]) -> Any:
    return tiny_student("llama")


def loaded(student: Student) -> OnnxRunner:
    limits = RunnerLimits(num_slots=2, capacity_tokens=64, num_threads=1)
    runner = OnnxRunner(student, PrecisionPlan(many="fp32"), limits)
    for stage in (HEAD, *student.manifest.stage_order()):
        runner.load(stage)
    return runner


def normed(runner: OnnxRunner, ids: tuple[int, ...], slot: int, start: int) -> npt.NDArray[np.float32]:
    hidden = runner.embed(ids)
    for stage in ("knowledge", "reasoning", "reasoning_exit"):
        hidden = runner.run_stage(stage, hidden, slot=slot, start=start)
    result: npt.NDArray[np.float32] = hidden[0]
    return result


def test_stages_give_every_positions_logits(tiny: Any) -> None:
    runner = loaded(tiny.student)
    expected = np.asarray(tiny.reference.logits(tiny.reference.layers(tiny.reference.embed(IDS), 0, 3)))
    logits = runner.run_head(normed(runner, IDS, 0, 0))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=2e-3)
    assert runner.run_head(normed(runner, IDS, 0, 0)[4:6]).shape == (2, 320)


def test_stages_go_on_from_the_kv_of_their_slot(tiny: Any) -> None:
    runner = loaded(tiny.student)
    whole = normed(runner, IDS, 0, 0)
    normed(runner, IDS[::-1], 1, 0)
    normed(runner, (*IDS[:6], 9, 9, 9), 0, 0)
    np.testing.assert_allclose(normed(runner, IDS[6:], 0, 6), whole[6:], rtol=1e-3, atol=1e-4)


def test_a_stage_leaves_its_input_alone(tiny: Any) -> None:
    runner = loaded(tiny.student)
    hidden = runner.embed(IDS)
    before = hidden.copy()
    runner.run_stage("knowledge", hidden, slot=0, start=0)
    np.testing.assert_array_equal(hidden, before)
