"""Rows of both heads in one step: each gets its own head's logits, the same bits as alone, in the fewest passes."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.contract import DecodeRow, PrefillChunk, StepInput
from engines.onnx.plan import PrecisionPlan
from engines.onnx.sessions import HeadSession
from models.errors import ConfigError
from models.student.manifest import HeadKind
from tests.engines.cheap_heads import errors, with_cheap_head
from tests.engines.onnx.test_runner import IDS, OTHERS, Tape, chunk

Float = npt.NDArray[np.float32]

ERRORS = errors(320)
HEADS: tuple[HeadKind, ...] = ("exact", "cheap")
PRECISIONS = ("fp32", "w8a8", "int8")


class HeadTape(Tape):
    """A runner with both heads, and how many rows each pass of a head has computed."""

    def __init__(self, student: Any, plan: PrecisionPlan) -> None:
        super().__init__(student, plan)
        self.passes: list[tuple[str, HeadKind, int]] = []
        for (variant, head), session in self.runner._heads.items():
            self.runner._heads[variant, head] = _Counted(session, variant, head, self.passes)  # type: ignore[assignment]

    def step(self, rows: Sequence[tuple[Sequence[int], HeadKind] | None], *prompts: PrefillChunk) -> Float:
        """A decode row per entry, whose prompt is its slot's KV, and `prompts`."""
        decode = tuple(
            DecodeRow(path=None, position=0, token_id=0)
            if row is None
            else DecodeRow(path="full", position=len(row[0]), token_id=60 + len(row[0]), head=row[1])
            for row in rows
        )
        for slot, row in enumerate(rows):
            if row is not None:
                self.prefill(slot, row[0])
        self.passes.clear()
        return self.run(decode=decode, prefill=prompts)


class _Counted:
    def __init__(self, session: HeadSession, variant: str, head: HeadKind, passes: list[Any]) -> None:
        self._session, self._variant, self._head, self._passes = session, variant, head, passes

    def run(self, normed: Float, logits: Float) -> None:
        self._passes.append((self._variant, self._head, len(normed)))
        self._session.run(normed, logits)


@pytest.fixture
def make_tape(tiny_student: Any, tmp_path: Path) -> Any:
    """`make_tape(many, few)`, on a student with a cheap head in three precisions."""
    student = with_cheap_head(tiny_student("llama", PRECISIONS).student, tmp_path / "student")

    def make(many: str = "w8a8", few: tuple[tuple[int, str], ...] = ()) -> HeadTape:
        return HeadTape(student, PrecisionPlan(many=many, few=few, cheap_head=True))

    return make


def prompt(slot: int, ids: Sequence[int], head: HeadKind, keeps: bool = False) -> PrefillChunk:
    return PrefillChunk(
        slot=slot, path="full", start=0, token_ids=tuple(ids), wants_logits=True, head=head, keeps_states=keeps
    )


@pytest.mark.parametrize("heads", list(itertools.product(HEADS, repeat=3)))
def test_runner_rows_of_both_heads_have_the_bits_they_have_alone(make_tape: Any, heads: tuple[HeadKind, ...]) -> None:
    prompts = [IDS, OTHERS[1], OTHERS[3]]
    rows = list(zip(prompts, heads, strict=True))
    mixed = make_tape().step([*rows[:2], None, rows[2]], prompt(5, OTHERS[0], heads[2]), prompt(6, IDS, heads[0]))
    for place, row in ((0, rows[0]), (1, rows[1]), (3, rows[2])):
        np.testing.assert_array_equal(mixed[place], make_tape().step([row])[0])
    np.testing.assert_array_equal(mixed[4], make_tape().step([], prompt(0, OTHERS[0], heads[2]))[0])
    np.testing.assert_array_equal(mixed[5], make_tape().step([], prompt(0, IDS, heads[0]))[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_runner_gives_each_row_its_own_heads_logits(make_tape: Any, precision: str) -> None:
    rows: list[tuple[Sequence[int], HeadKind]] = [(IDS, "cheap"), (OTHERS[1], "exact"), (OTHERS[3], "cheap")]
    mixed = make_tape(precision).step(rows, prompt(4, OTHERS[0], "cheap"))
    exact = make_tape(precision).step([(ids, "exact") for ids, _ in rows], prompt(4, OTHERS[0], "exact"))
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(mixed[1], exact[1], **close)
    for row in (0, 2, 3):
        np.testing.assert_allclose(mixed[row], exact[row] + ERRORS, **close)


def passes(tape: HeadTape) -> list[tuple[HeadKind, int]]:
    return sorted((head, num_rows) for _, head, num_rows in tape.passes)


def test_runner_runs_each_head_once_at_most(make_tape: Any) -> None:
    tape = make_tape()
    ids = [IDS, *OTHERS, IDS[5:]]
    tape.step([(one, "cheap") for one in ids])
    assert passes(tape) == [("cheap", 6)]
    tape.step([(one, "exact") for one in ids])
    assert passes(tape) == [("exact", 6)]
    tape.step([(one, HEADS[index % 2]) for index, one in enumerate(ids)], prompt(7, IDS, "cheap"))
    assert passes(tape) == [("cheap", 4), ("exact", 3)]
    tape.step([(one, HEADS[index // 3]) for index, one in enumerate(ids)])
    assert passes(tape) == [("cheap", 3), ("exact", 3)]


def test_runner_padding_asks_for_no_pass_of_its_own(make_tape: Any) -> None:
    tape = make_tape()
    tape.step([None, (IDS, "cheap"), None, *((one, "cheap") for one in OTHERS[:3])])
    assert passes(tape) == [("cheap", 5)]  # the padding between them is on the way
    tape.step([None, (IDS, "cheap"), None, None, (OTHERS[0], "cheap")])
    assert passes(tape) == [("cheap", 2)]
    tape.step([None, (IDS, "cheap"), None, (OTHERS[0], "exact"), None, (OTHERS[1], "cheap")])
    assert passes(tape) == [("cheap", 2), ("exact", 1)]


def test_runner_exact_logits_are_those_of_the_exact_head_and_leave_the_others_alone(make_tape: Any) -> None:
    rows: list[tuple[Sequence[int], HeadKind]] = [(IDS, "cheap"), (OTHERS[1], "exact"), (OTHERS[3], "cheap")]
    tape = make_tape()
    exact = make_tape().step([(ids, "exact") for ids, _ in rows], prompt(4, OTHERS[0], "exact"))
    before = tape.step(rows, prompt(4, OTHERS[0], "cheap"))
    for chosen in ([0], [2], [0, 2], [2, 3], [0, 1, 2, 3], [3]):
        tape.passes.clear()
        np.testing.assert_array_equal(tape.runner.exact_logits(chosen), exact[chosen])
        assert passes(tape) == [("exact", len(chosen))]
    np.testing.assert_array_equal(tape.runner._logits[:4], before)


def test_runner_exact_logits_of_rows_and_prompts_are_each_of_their_own_variant(make_tape: Any) -> None:
    """Two precisions write their states in different bases: one head must not read the other's."""
    few = ((2, "int8"),)
    tape, exact = make_tape("w8a8", few), make_tape("w8a8", few)
    found = tape.step([(IDS, "cheap")], prompt(4, OTHERS[0], "cheap"))
    expected = exact.step([(IDS, "exact")], prompt(4, OTHERS[0], "exact"))
    assert sorted(tape.passes) == [("int8", "cheap", 1), ("w8a8", "cheap", 1)]
    np.testing.assert_allclose(found, expected + ERRORS, atol=1e-4)
    np.testing.assert_array_equal(tape.runner.exact_logits([0, 1]), expected)
    np.testing.assert_array_equal(tape.runner.exact_logits([1]), expected[1:])
    np.testing.assert_array_equal(tape.runner.exact_logits([0]), expected[:1])


def test_runner_position_logits_are_exact_whichever_head_the_prompt_uses(make_tape: Any) -> None:
    tape, other = make_tape(), make_tape()
    tape.run(prefill=(prompt(0, IDS, "cheap", keeps=True),))
    other.run(prefill=(prompt(0, IDS, "exact", keeps=True),))
    expected = other.runner.position_logits(0, 3, 9)
    np.testing.assert_array_equal(tape.runner.position_logits(0, 3, 9), expected)
    assert {head for _, head, _ in tape.passes[1:]} == {"exact"}


def test_runner_head_for_many_states_is_the_one_that_is_named(make_tape: Any) -> None:
    runner = make_tape("fp32").runner
    states = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    np.testing.assert_array_equal(runner.run_head(states, head="cheap"), runner.run_head(states) + ERRORS)


def test_runner_without_a_cheap_head_serves_no_row_with_a_wrong_one(tiny_student: Any) -> None:
    tape = Tape(tiny_student("llama").student, PrecisionPlan(many="fp32"))
    tape.prefill(0, IDS)
    row = DecodeRow(path="full", position=len(IDS), token_id=9, head="cheap")
    with pytest.raises(KeyError):
        tape.runner.forward(StepInput(decode=(row,), prefill=(chunk(1, IDS),)))


def test_runner_names_a_student_that_has_no_cheap_head(tiny_student: Any) -> None:
    with pytest.raises(ConfigError, match="no cheap head at precision 'fp32'"):
        Tape(tiny_student("llama").student, PrecisionPlan(many="fp32", cheap_head=True))
