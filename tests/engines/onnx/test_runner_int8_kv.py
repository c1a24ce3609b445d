"""The runner with KV in int8: close to the reference, the same bits alone and beside others, blocks that keep it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.contract import StepInput
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from models.building.build import build_student
from models.student.folder import HEAD, Student
from tests.engines.onnx.test_runner import (
    DEPTH_LAYERS,
    FAMILIES,
    IDS,
    OTHERS,
    Tape,
    chunk,
    cosine,
    expected_logits,
    mixed_step,
    never_joining,
)

MakeTape = Callable[..., Tape]
NATIVE = "w8a8-native"


@pytest.fixture
def tape(tiny_student: Any, native_library: Any) -> MakeTape:
    """`tape(family)`: a runner on a tiny student, its KV in int8."""

    def make(family: str = "llama", int8_kv: bool = True, **config: Any) -> Tape:
        tiny = tiny_student(family, (NATIVE,), **config)
        return Tape(tiny.student, PrecisionPlan(many=NATIVE, int8_kv=int8_kv), native_library)

    return make


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_int8_kv_stays_close_to_the_reference(
    tape: MakeTape, tiny_student: Any, family: str, config: dict[str, Any]
) -> None:
    int8, halves = tape(family, **config), tape(family, int8_kv=False, **config)
    reference = tiny_student(family, (NATIVE,), **config).reference
    for path in DEPTH_LAYERS:
        expected = expected_logits(reference, IDS, path)
        for one in (int8, halves):
            assert cosine(one.prefill(0, IDS[:17], path), expected[16]) > 0.98
            for position in range(17, 20):
                (logits,) = one.decode((path, position, IDS[position]))
                assert cosine(logits, expected[position]) > 0.98


def test_int8_kv_is_what_runs(tape: MakeTape) -> None:
    """A graph that was not told of it would give the bits of halves."""
    assert (tape().prefill(0, IDS) != tape(int8_kv=False).prefill(0, IDS)).any()


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_int8_kv_row_has_the_same_bits_alone_and_in_a_batch(
    tape: MakeTape, family: str, config: dict[str, Any]
) -> None:
    prompts = [IDS, *OTHERS, IDS[5:], IDS[::-1]]
    together = tape(family, **config)
    prompt_logits = [together.prefill(slot, ids) for slot, ids in enumerate(prompts)]
    decoded = [together.decode(*(("full", len(ids) + i, 9 + i) for ids in prompts)) for i in range(3)]
    for slot, ids in enumerate(prompts):
        alone = tape(family, **config)
        np.testing.assert_array_equal(alone.prefill(0, ids), prompt_logits[slot])
        for i, batch in enumerate(decoded):
            np.testing.assert_array_equal(alone.decode(("full", len(ids) + i, 9 + i))[0], batch[slot])


def test_int8_kv_joint_pass_has_the_bits_of_passes_apart(tape: MakeTape) -> None:
    joint, single = tape(), never_joining(tape())
    step, _ = mixed_step(joint)
    mixed_step(single)
    step = StepInput(decode=step.decode, prefill=(*step.prefill, chunk(6, IDS[:1]), chunk(7, IDS[:9])))
    assert joint.runner._can_join(step)
    logits = np.delete(joint.runner.forward(step), 2, axis=0)
    parts = [StepInput(decode=step.decode), *(StepInput(prefill=(one,)) for one in step.prefill)]
    expected = np.concatenate([single.runner.forward(part).copy() for part in parts])
    np.testing.assert_array_equal(logits, np.delete(expected, 2, axis=0))


@pytest.mark.parametrize("sizes", [[4] * 5, [2] * 10, [3, 4, 5, 6, 2], [18, 2]])
@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_int8_kv_prompt_has_the_same_bits_however_it_is_cut(
    tape: MakeTape, family: str, config: dict[str, Any], sizes: list[int]
) -> None:
    runs = tape(family, **config)
    whole, start = runs.prefill(0, IDS), 0
    for size in sizes:
        cut = runs.prefill(1, IDS[start : start + size], "full", start)
        start += size
    np.testing.assert_array_equal(cut, whole)
    np.testing.assert_array_equal(*runs.decode(("full", len(IDS), 11), ("full", len(IDS), 11)))


def test_int8_kv_blocks_carry_a_prefix_into_another_slot(tape: MakeTape) -> None:
    """As the prefix cache does: a block holds integers and scales, and gives the bits of computing it again."""
    first, second = tape(), tape()
    first.prefill(3, IDS[:16])
    second.prefill(5, IDS[::-1])  # what was there before
    for stage in first.runner._kv:
        for start in (0, 8):
            second.runner.write_block(stage, 5, start, first.runner.read_block(stage, 3, start, 8))
    expected = first.prefill(3, IDS[16:], "full", 16)
    np.testing.assert_array_equal(second.prefill(5, IDS[16:], "full", 16), expected)
    second.runner.move_slot(5, 2, "full", 20)
    np.testing.assert_array_equal(
        second.decode(*[(None, 0, 0)] * 2, ("full", 20, 7))[2], first.decode(*[(None, 0, 0)] * 3, ("full", 20, 7))[3]
    )


def test_int8_kv_takes_the_bytes_that_are_counted(tape: MakeTape) -> None:
    int8, halves = tape().runner, tape(int8_kv=False).runner
    for stage in int8._kv:
        num_bytes = int8.kv_bytes_per_token(stage)
        assert num_bytes == int8.read_block(stage, 0, 0, 1).nbytes
        heads = halves.read_block(stage, 0, 0, 1).size // int8._manifest.architecture.head_dim
        assert num_bytes == halves.kv_bytes_per_token(stage) // 2 + 2 * heads


def test_int8_kv_of_blocks_of_a_gguf_file(tiny_source: Any, tiny_gguf: Any, native_library: Any, tmp_path: Any) -> None:
    file = tiny_gguf(tiny_source("qwen2"), quantisation="Q8_0")
    out, name = tmp_path / "student", "gguf-native"
    build_student(file, out, modules="knowledge:1,reasoning:2,adapter:1", precisions=(name,))
    student = Student.open(out)
    found = []
    for int8_kv in (False, True):
        limits = RunnerLimits(num_slots=4, capacity_tokens=64, num_threads=1, library=native_library)
        runner = OnnxRunner(student, PrecisionPlan(many=name, int8_kv=int8_kv), limits)
        for stage in (*student.manifest.stage_order(), HEAD):
            runner.load(stage)
        whole = runner.forward(StepInput(prefill=(chunk(0, IDS),))).copy()
        for one in (chunk(1, IDS[:9]), chunk(1, IDS[9:], start=9)):
            cut = runner.forward(StepInput(prefill=(one,))).copy()
        np.testing.assert_array_equal(cut, whole)
        found.append(whole[0])
    assert (found[0] != found[1]).any()
    assert cosine(found[0], found[1]) > 0.995
