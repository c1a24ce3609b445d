"""The ONNX runner against the torch reference on tiny random students of every family."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.contract import DecodeRow, PrefillChunk, StepInput
from engines.onnx import sessions
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits, grouped
from models.reference import KvCache
from models.student.folder import HEAD, Student

Float = npt.NDArray[np.float32]

IDS = (1, 40, 300, 7, 7, 120, 319, 64, 5, 90, 210, 33, 12, 250, 99, 18, 77, 3, 2, 140)
OTHERS = ((9, 8, 7), (100, 101, 102, 103, 104), (5,), (33, 44, 55, 66))
FAMILIES = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("llama", {"tie_word_embeddings": True, "attention_bias": True}, id="llama-tied-biases"),
    pytest.param("mistral", {"sliding_window": 8}, id="mistral-sliding"),
    pytest.param("qwen2", {}, id="qwen2"),
    pytest.param("qwen3", {}, id="qwen3"),
]
DEPTH_LAYERS = {"knowledge": 1, "reasoning": 3, "full": 4}
TOLERANCE: dict[str, Any] = {"rtol": 1e-3, "atol": 2e-3}
CLOSENESS = {"int8": 0.99, "w8a8": 0.985, "w8a8-native": 0.985}


class Tape:
    """A runner and the way prompts and answers go through it."""

    def __init__(self, student: Student, plan: PrecisionPlan, library: Path | None = None, num_slots: int = 8) -> None:
        limits = RunnerLimits(num_slots=num_slots, capacity_tokens=128, num_threads=1, library=library)
        self.runner = OnnxRunner(student, plan, limits)
        for stage in (HEAD, *student.manifest.stage_order()):
            self.runner.load(stage)

    def prefill(self, slot: int, ids: Sequence[int], path: str = "full", start: int = 0) -> Float:
        logits: Float = self.run(prefill=(chunk(slot, ids, path, start),))[0]
        return logits

    def decode(self, *rows: tuple[str | None, int, int]) -> Float:
        return self.run(decode=tuple(DecodeRow(path=path, position=at, token_id=id) for path, at, id in rows))

    def run(self, **step: Any) -> Float:
        logits: Float = self.runner.forward(StepInput(**step)).copy()
        return logits

    def states(self, one: PrefillChunk) -> Float:
        """Logits of every position of a chunk whose states the last step kept."""
        return self.runner.position_logits(one.slot, one.start, one.start + len(one.token_ids))


def chunk(slot: int, ids: Sequence[int], path: str = "full", start: int = 0, wants: bool = True) -> PrefillChunk:
    return PrefillChunk(slot=slot, path=path, start=start, token_ids=tuple(ids), wants_logits=wants)


MakeTape = Callable[..., Tape]


@pytest.fixture
def tape(tiny_student: Any, request: pytest.FixtureRequest) -> MakeTape:
    """`tape(family, precision)`: a runner on a tiny student; skips where the precision cannot run."""

    def make(family: str = "llama", precision: str = "fp32", **config: Any) -> Tape:
        library = request.getfixturevalue("native_library") if precision.endswith("native") else None
        tiny = tiny_student(family, (precision,), **config)
        return Tape(tiny.student, PrecisionPlan(many=precision), library)

    return make


def expected_logits(reference: Any, ids: Sequence[int], path: str) -> Float:
    """Every position's logits where a path of so many layers leaves through the final norm."""
    hidden = reference.layers(reference.embed(ids), 0, DEPTH_LAYERS[path])
    return np.asarray(reference.logits(hidden))


@pytest.mark.parametrize(("family", "config"), FAMILIES)
@pytest.mark.parametrize("path", sorted(DEPTH_LAYERS))
def test_runner_equals_the_reference_on_every_path(
    tiny_student: Any, family: str, config: dict[str, Any], path: str
) -> None:
    tiny = tiny_student(family, **config)
    expected = expected_logits(tiny.reference, IDS, path)
    assert expected.std() > 0.3
    for sizes in ((16,), (1, 5, 10), (3, 13), (15, 1)):
        tape = Tape(tiny.student, PrecisionPlan(many="fp32"))
        start = 0
        for size in sizes:
            logits = tape.prefill(0, IDS[start : start + size], path, start)
            start += size
            np.testing.assert_allclose(logits, expected[start - 1], **TOLERANCE)
        for position in range(start, len(IDS)):
            (logits,) = tape.decode((path, position, IDS[position]))
            np.testing.assert_allclose(logits, expected[position], **TOLERANCE)


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_runner_hidden_states_after_every_module_equal_the_reference(
    tiny_student: Any, family: str, config: dict[str, Any]
) -> None:
    tiny = tiny_student(family, **config)
    runner = Tape(tiny.student, PrecisionPlan(many="fp32")).runner
    hidden = np.asarray(tiny.reference.embed(IDS))[None].copy()
    expected = tiny.reference.embed(IDS)
    for module in tiny.student.manifest.modules:
        runner._run_chunks(module.name, [chunk(2, IDS)], hidden, hidden)
        expected = tiny.reference.layers(expected, module.first_layer, module.num_layers, KvCache())
        np.testing.assert_allclose(hidden[0], np.asarray(expected), **TOLERANCE)


def test_runner_prompts_padded_together_equal_each_alone(tape: MakeTape) -> None:
    prompts = [IDS, IDS[3:17], IDS[1:20]]
    alone = [tape().prefill(0, ids) for ids in prompts]
    together = tape()
    chunks = tuple(chunk(slot, ids) for slot, ids in enumerate(prompts))
    assert len(grouped(chunks)) == 1
    np.testing.assert_allclose(together.run(prefill=chunks), alone, **TOLERANCE)
    single = tape()
    for slot, ids in enumerate(prompts):
        single.prefill(slot, ids)
    rows = [("full", len(ids), 50 + slot) for slot, ids in enumerate(prompts)]
    np.testing.assert_allclose(together.decode(*rows), single.decode(*rows), **TOLERANCE)


def apart(step: StepInput) -> list[StepInput]:
    """The same step in passes of decode rows alone and of one chunk each."""
    return [StepInput(decode=step.decode), *(StepInput(prefill=(one,)) for one in step.prefill)]


def never_joining(tape: Tape) -> Tape:
    """Its passes compute padding as well, one kind of row at a time."""
    tape.runner._can_join = lambda step: False  # type: ignore[method-assign]
    return tape


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_runner_joint_pass_has_the_bits_of_passes_apart(tape: MakeTape, family: str, config: dict[str, Any]) -> None:
    """Rows on every path, padding in the slot of a prompt that goes on, prompts of one token and of many."""
    joint, single = tape(family, "w8a8-native", **config), never_joining(tape(family, "w8a8-native", **config))
    step, _ = mixed_step(joint)
    mixed_step(single)
    chunks = (*step.prefill, chunk(6, IDS[:1]), chunk(7, IDS[:9], wants=False))
    step = StepInput(decode=step.decode, prefill=tuple(replace(one, keeps_states=True) for one in chunks))
    assert joint.runner._can_join(step)
    logits = np.delete(joint.runner.forward(step), 2, axis=0)
    states = [joint.states(one) for one in chunks]
    expected, expected_states = [], []
    for part in apart(step):
        expected.append(single.runner.forward(part).copy())
        expected_states += [single.states(one) for one in part.prefill]
    np.testing.assert_array_equal(logits, np.delete(np.concatenate(expected), 2, axis=0))
    for found, wanted in zip(states, expected_states, strict=True):
        np.testing.assert_array_equal(found, wanted)
    # what the step wrote into the cache is the same too
    rows = [("full", len(OTHERS[0]) + 1, 3), ("full", len(OTHERS[1]) + 1, 3), ("reasoning", len(IDS), 3)]
    rows += [("reasoning", len(OTHERS[2]) + 1, 3), ("knowledge", len(OTHERS[3]) + 1, 3), ("knowledge", len(IDS) - 4, 3)]
    rows += [("full", 1, 3), ("full", 9, 3)]
    np.testing.assert_array_equal(joint.decode(*rows), single.decode(*rows))


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_runner_leaves_padding_out(tape: MakeTape, family: str, config: dict[str, Any]) -> None:
    """Other rows have the bits that they have beside it, and the sequence in its slot is not touched."""
    without, beside = tape(family, "w8a8-native", **config), never_joining(tape(family, "w8a8-native", **config))
    rows = mixed_step(without)[0].decode
    mixed_step(beside)
    padding = [slot for slot, row in enumerate(rows) if row.path is None]
    assert padding
    before = [without.runner.read_block(stage, slot, 0, 16) for stage in without.runner._kv for slot in padding]
    logits = without.runner.forward(StepInput(decode=rows)).copy()
    expected = beside.runner.forward(StepInput(decode=rows))
    np.testing.assert_array_equal(np.delete(logits, padding, axis=0), np.delete(expected, padding, axis=0))
    after = [without.runner.read_block(stage, slot, 0, 16) for stage in without.runner._kv for slot in padding]
    assert [block.tobytes() for block in before] == [block.tobytes() for block in after]


def test_runner_binds_caches_once_for_all_joint_passes(tape: MakeTape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever sizes, and in arrays of their own."""
    joint, single = tape(precision="w8a8-native"), never_joining(tape(precision="w8a8-native"))
    rows = mixed_step(joint)[0].decode
    mixed_step(single)
    bound: list[str] = []
    bind = sessions._bind_output

    def bind_output(binding: Any, name: str, array: Float) -> None:
        bound.append(name)
        bind(binding, name, array)

    for left_out in ((), (0, 1), (4,), ()):
        present = [slot for slot, row in enumerate(rows) if row.path is not None and slot not in left_out]
        step = tuple(row if slot in present else replace(row, path=None) for slot, row in enumerate(rows))
        expected = single.run(decode=step)
        with monkeypatch.context() as patch:
            patch.setattr(sessions, "_bind_output", bind_output)
            found = joint.run(decode=step)
        np.testing.assert_array_equal(found[present], expected[present])
        rows = tuple(replace(row, position=row.position + (slot in present)) for slot, row in enumerate(rows))
    names = Counter(bound)
    assert names["output"] > names["present_key_0"] == len(joint.runner._kv)


def test_runner_returns_logits_in_the_order_of_the_chunks(tape: MakeTape) -> None:
    alone = [tape().prefill(0, ids) for ids in OTHERS]
    chunks = tuple(chunk(slot, ids) for slot, ids in zip((2, 0, 3, 1), OTHERS, strict=True))
    np.testing.assert_allclose(tape().run(prefill=chunks), alone, **TOLERANCE)


def test_runner_gives_logits_to_the_chunks_that_want_them(tape: MakeTape) -> None:
    expected = tape().prefill(0, OTHERS[1])
    chunks = (chunk(0, OTHERS[0], wants=False), chunk(1, OTHERS[1]), chunk(2, OTHERS[3], wants=False))
    logits = tape().run(prefill=chunks)
    assert logits.shape == (1, 320)
    np.testing.assert_allclose(logits[0], expected, **TOLERANCE)


def mixed_step(tape: Tape) -> tuple[StepInput, list[tuple[str, Sequence[int]]]]:
    """Rows on every path with a hole, and two prompts, one going on; and what each of them is alone."""
    rows = [("full", OTHERS[0]), ("full", OTHERS[1]), None, ("reasoning", OTHERS[2]), ("knowledge", OTHERS[3])]
    for slot, entry in enumerate(rows):
        if entry is not None:
            tape.prefill(slot, entry[1], entry[0])
    tape.prefill(2, IDS[:6], "reasoning")
    decode = tuple(
        DecodeRow(path=None, position=6, token_id=0)
        if entry is None
        else DecodeRow(path=entry[0], position=len(entry[1]), token_id=60 + slot)
        for slot, entry in enumerate(rows)
    )
    step = StepInput(decode=decode, prefill=(chunk(2, IDS[6:], "reasoning", 6), chunk(5, IDS[4:], "knowledge")))
    wholes = [(e[0], (*e[1], 60 + slot)) for slot, e in enumerate(rows) if e is not None]
    return step, [*wholes, ("reasoning", IDS), ("knowledge", IDS[4:])]


@pytest.mark.parametrize("precision", ["fp32", "int8", "w8a8", "w8a8-native"])
def test_runner_mixed_paths_in_one_step_equal_each_alone(tape: MakeTape, precision: str) -> None:
    mixed = tape(precision=precision)
    step, wholes = mixed_step(mixed)
    logits = np.delete(mixed.runner.forward(step), 2, axis=0)
    for row, (path, ids) in zip(logits, wholes, strict=True):
        alone = tape(precision=precision)
        # As the step had them: rows decode their last token, a prompt was cut after its sixth.
        if ids[:-1] in OTHERS:
            alone.prefill(0, ids[:-1], path)
            (expected,) = alone.decode((path, len(ids) - 1, ids[-1]))
        elif ids is IDS:
            alone.prefill(0, ids[:6], path)
            expected = alone.prefill(0, ids[6:], path, 6)
        else:
            expected = alone.prefill(0, ids, path)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["w8a8", "w8a8-native"])
def test_runner_row_has_the_same_bits_alone_and_in_a_batch(tape: MakeTape, precision: str) -> None:
    prompts = [IDS, *OTHERS, IDS[5:], IDS[::-1]]
    together = tape(precision=precision)
    prompt_logits = [together.prefill(slot, ids) for slot, ids in enumerate(prompts)]
    paths = ["full"] * len(prompts)
    decoded = [
        together.decode(*((p, len(ids) + i, 9 + i) for p, ids in zip(paths, prompts, strict=True))) for i in range(3)
    ]
    for slot, ids in enumerate(prompts):
        alone = tape(precision=precision)
        np.testing.assert_array_equal(alone.prefill(0, ids), prompt_logits[slot])
        for i, batch in enumerate(decoded):
            np.testing.assert_array_equal(alone.decode(("full", len(ids) + i, 9 + i))[0], batch[slot])


@pytest.mark.parametrize("precision", ["w8a8", "w8a8-native"])
def test_runner_row_has_the_same_bits_beside_other_paths_and_prompts(tape: MakeTape, precision: str) -> None:
    mixed = tape(precision=precision)
    step, _ = mixed_step(mixed)
    logits = mixed.run(decode=step.decode, prefill=step.prefill)
    for slot, row in enumerate(step.decode):
        if row.path is not None:
            alone = tape(precision=precision)
            ids = OTHERS[slot if slot < 2 else slot - 1]
            alone.prefill(0, ids, row.path)
            np.testing.assert_array_equal(alone.decode((row.path, row.position, row.token_id))[0], logits[slot])


@pytest.mark.parametrize("sizes", [[4] * 5, [2] * 10, [8, 8, 4], [3, 4, 5, 6, 2], [18, 2], [16, 4]])
@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_runner_prompt_has_the_same_bits_however_it_is_cut(
    tape: MakeTape, family: str, config: dict[str, Any], sizes: list[int]
) -> None:
    """Into any chunks but single tokens: other tenants' streams decide how long they are."""
    runs = tape(family, "w8a8-native", **config)
    for path in DEPTH_LAYERS:
        whole, start = runs.prefill(0, IDS, path), 0
        for size in sizes:
            cut = runs.prefill(1, IDS[start : start + size], path, start)
            start += size
        np.testing.assert_array_equal(cut, whole)
        row = (path, len(IDS), 11)
        np.testing.assert_array_equal(*runs.decode(row, row))


def cosine(one: Float, other: Float) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize(("family", "config"), FAMILIES)
@pytest.mark.parametrize("precision", sorted(CLOSENESS))
def test_runner_quantised_logits_stay_close_to_the_reference(
    tape: MakeTape, tiny_student: Any, precision: str, family: str, config: dict[str, Any]
) -> None:
    quantised = tape(family, precision, **config)
    tiny = tiny_student(family, (precision,), **config)
    for path in DEPTH_LAYERS:
        expected = expected_logits(tiny.reference, IDS, path)
        prefilled = quantised.prefill(0, IDS[:17], path)
        assert cosine(prefilled, expected[16]) > CLOSENESS[precision]
        for position in range(17, 20):
            (logits,) = quantised.decode((path, position, IDS[position]))
            assert cosine(logits, expected[position]) > CLOSENESS[precision]


def test_runner_adaptive_plan_serves_rows_and_prompts_of_one_step_each_by_its_variant(tiny_student: Any) -> None:
    tiny = tiny_student("llama", ("int8", "w8a8"))
    plan = PrecisionPlan(many="w8a8", few=((2, "int8"),))
    mixed, alone = Tape(tiny.student, plan), Tape(tiny.student, plan)
    for each in (mixed, alone):
        each.prefill(0, IDS)
    prompts = Tape(tiny.student, PrecisionPlan(many="w8a8"))
    expected = [alone.decode(("full", len(IDS), 11))[0], prompts.prefill(1, OTHERS[1])]
    np.testing.assert_array_equal(alone.prefill(1, OTHERS[1]), expected[1])
    row = DecodeRow(path="full", position=len(IDS), token_id=11)
    np.testing.assert_allclose(mixed.run(decode=(row,), prefill=(chunk(1, OTHERS[1]),)), expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "w8a8-native"])
def test_runner_moved_sequence_goes_on_as_before(tape: MakeTape, precision: str) -> None:
    moved, still = tape(precision=precision), tape(precision=precision)
    moved.prefill(5, IDS, "reasoning")
    still.prefill(0, IDS, "reasoning")
    moved.prefill(0, OTHERS[1], "reasoning")
    moved.runner.move_slot(5, 0, "reasoning", len(IDS))
    row = ("reasoning", len(IDS), 11)
    np.testing.assert_array_equal(moved.decode(row), still.decode(row))


@pytest.mark.parametrize("precision", ["fp32", "w8a8-native"])
def test_runner_sequence_goes_on_from_restored_blocks(tape: MakeTape, precision: str) -> None:
    first, second = tape(precision=precision), tape(precision=precision)
    expected = first.prefill(3, IDS)
    for stage in ("knowledge", "reasoning", "adapter"):
        for start in (0, 8):
            block = first.runner.read_block(stage, 3, start, 8)
            layers = 2 if stage == "reasoning" else 1
            assert block.shape == (layers, 2, 2, 8, 16)
            assert block.nbytes == 8 * first.runner.kv_bytes_per_token(stage)
            second.runner.write_block(stage, 1, start, block)
    np.testing.assert_allclose(second.prefill(1, IDS[16:], start=16), expected, rtol=1e-3, atol=5e-3)


def test_runner_released_slot_can_be_used_again(tape: MakeTape) -> None:
    used = tape()
    used.prefill(0, IDS)
    used.runner.release_slot(0, len(IDS))
    np.testing.assert_array_equal(used.prefill(0, OTHERS[1]), tape().prefill(0, OTHERS[1]))


def test_runner_kv_bytes_follow_the_element_type(tape: MakeTape) -> None:
    sizes = {name: tape(precision=name).runner.kv_bytes_per_token("reasoning") for name in ("fp32", "w8a8-native")}
    assert sizes == {"fp32": 2 * 2 * 32 * 4, "w8a8-native": 2 * 2 * 32 * 2}
    assert tape().runner.kv_bytes_per_token("reasoning_exit") == 0


def test_runner_step_of_unfinished_prompts_alone_has_no_rows(tape: MakeTape) -> None:
    assert tape().run(prefill=(chunk(0, IDS[:5], wants=False),)).shape == (0, 320)


def test_grouped_joins_whole_beginnings_of_like_length_in_consecutive_slots() -> None:
    same = [chunk(slot, (1,) * 8) for slot in (0, 1, 3)]
    assert [[c.slot for c in group] for group in grouped(same)] == [[0, 1], [3]]
    uneven = [chunk(0, (1,) * 20), chunk(1, (1,) * 2)]
    assert len(grouped(uneven)) == 2
    paths = [chunk(0, (1,) * 4), chunk(1, (1,) * 4, "knowledge")]
    assert len(grouped(paths)) == 2
    continued = [chunk(0, (1,) * 4), chunk(1, (1,) * 4, start=8)]
    assert len(grouped(continued)) == 2
