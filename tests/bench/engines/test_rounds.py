"""Subjects in processes of their own: the protocol with fakes that answer, are absent, fail, die, hang or babble."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bench.engines.cases import Case, Effort, Plan, Role, Step
from bench.engines.rounds import SUBJECTS, Outcome, Rounds, SubjectEntry
from bench.host import load_subject
from bench.protocol import Generate, Generated, Setup
from bench.workload import Workload

FAKES = """
import os, sys, time
from bench.protocol import Generate, Generated
from bench.subject import SubjectAbsent

class Good:
    def open(self, setup):
        print("noise from a native library")
        return "1.0"
    @property
    def measures(self):
        return {Generate: self.generate}
    def generate(self, task):
        print("more noise", flush=True)
        os.write(1, b"{not json}\\n")
        return Generated(num_prompt_tokens=task.prompts[0][0], num_tokens=1, first_s=1.0, total_s=2.0)
    def close(self):
        pass

class Missing(Good):
    def open(self, setup):
        raise SubjectAbsent("missing is not installed: pip install 'fenhe[bench]'")

class Weak(Good):
    measures = {}

class Raising(Good):
    def generate(self, task):
        raise ValueError("no good")

class Dying(Good):
    def generate(self, task):
        print("last words", file=sys.stderr)
        sys.stderr.flush()
        os._exit(7)

class Hanging(Good):
    def generate(self, task):
        time.sleep(60)
"""
NO_EFFORT = Effort(
    decode_tokens=2,
    stream_repeats=1,
    job_repeats=1,
    prefill_repeats=1,
    step_repeats=1,
    score_tokens=1,
    one_row_tokens=1,
)
RunFakes = Callable[..., tuple[Outcome, list[str]]]


def one_task(plan: Plan, role: Role) -> Iterator[Step]:
    yield Step(task=Generate(prompts=(plan.workload.window(2),), num_tokens=1), is_warm_up=True)
    yield Step(task=Generate(prompts=(plan.workload.window(2),), num_tokens=1))


def case(*, is_once: bool = False, roles: frozenset[Role] = frozenset({Role.PEER, Role.FENHE})) -> Case:
    return Case(title="a case", roles=roles, steps=one_task, is_once=is_once)


@pytest.fixture
def run_fakes(tmp_path: Path) -> RunFakes:
    (tmp_path / "fakes.py").write_text(FAKES)

    def run(
        names: tuple[str, ...],
        *,
        cases: Mapping[str, Case] | None = None,
        num_rounds: int = 1,
        role: Role = Role.PEER,
        timeout_s: float = 30.0,
    ) -> tuple[Outcome, list[str]]:
        lines: list[str] = []
        rounds = Rounds(
            cases=cases or {"decode_1": case()},
            subjects=[SubjectEntry(name=name, role=role, target=f"fakes:{name}") for name in names],
            plan=Plan(workload=Workload(texts=(tuple(range(5000)),)), effort=NO_EFFORT),
            setup=Setup(num_threads=1),
            environ={**os.environ, "PYTHONPATH": str(tmp_path)},
            report=lines.append,
            timeout_s=timeout_s,
        )
        return rounds.run(num_rounds), lines

    return run


def failures(outcome: Outcome) -> list[str]:
    """The notes without remarks on how busy the machine was."""
    return [note for note in outcome.notes if "measure again" not in note]


def test_rounds_interleave_subjects_and_record_what_is_no_warm_up(run_fakes: RunFakes) -> None:
    outcome, lines = run_fakes(("Good", "Weak"), num_rounds=2)
    assert [line.split(": ")[:2] for line in lines] == [
        ["round 1 of 2", "Good"],
        ["round 1 of 2", "Weak"],
        ["round 2 of 2", "Good"],
        ["round 2 of 2", "Weak"],
    ]
    assert [(record.subject, record.number) for record in outcome.records] == [("Good", 0), ("Good", 1)]
    assert outcome.versions["Good"] == "1.0"


def test_rounds_give_every_subject_the_same_prompts(run_fakes: RunFakes) -> None:
    outcome, _ = run_fakes(("Good", "Good"), cases={"a": case(), "b": case()})
    starts = [r.answer.num_prompt_tokens for r in outcome.records if isinstance(r.answer, Generated)]
    assert starts[:2] == starts[2:]
    assert len(set(starts)) == 2


def test_rounds_run_a_once_case_in_the_first_round_only(run_fakes: RunFakes) -> None:
    outcome, _ = run_fakes(("Good",), cases={"a": case(), "b": case(is_once=True)}, num_rounds=2)
    assert [(record.case, record.number) for record in outcome.records] == [("a", 0), ("b", 0), ("a", 1)]


def test_rounds_leave_out_cases_of_other_roles(run_fakes: RunFakes) -> None:
    outcome, lines = run_fakes(("Good",), cases={"a": case(roles=frozenset({Role.SERVE}))})
    assert (outcome.records, lines) == ((), [])


def test_absent_peer_is_reported_once_with_what_to_install_and_not_asked_again(run_fakes: RunFakes) -> None:
    outcome, lines = run_fakes(("Missing", "Good"), num_rounds=2)
    assert failures(outcome) == ["Missing: absent: missing is not installed: pip install 'fenhe[bench]'"]
    assert sum("Missing" in line for line in lines) == 1
    assert len(outcome.records) == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Weak", "not possible: Weak has no Generate"),
        ("Raising", "failed: ValueError: no good"),
        ("Dying", "failed: the process ended: exit code 7; "),
    ],
)
def test_bad_subject_is_noted_and_the_next_one_still_runs(run_fakes: RunFakes, name: str, told: str) -> None:
    outcome, _ = run_fakes((name, "Good"))
    (note,) = failures(outcome)
    assert note.startswith(f"{name}: decode_1: {told}")
    assert [record.subject for record in outcome.records] == ["Good"]
    assert outcome.faults == ()


def test_dying_subject_leaves_its_last_words(run_fakes: RunFakes) -> None:
    outcome, _ = run_fakes(("Dying",))
    assert "last words" in failures(outcome)[0]


def test_hanging_subject_is_given_up(run_fakes: RunFakes) -> None:
    outcome, _ = run_fakes(("Hanging",), timeout_s=3.0)
    assert failures(outcome) == ["Hanging: decode_1: failed: no answer within 3 s"]


def test_failure_of_our_own_is_a_fault(run_fakes: RunFakes) -> None:
    outcome, _ = run_fakes(("Raising",), role=Role.FENHE)
    assert outcome.faults == ("Raising: decode_1: failed: ValueError: no good",)


def test_every_subject_of_the_product_can_be_made_without_its_library() -> None:
    for entry in SUBJECTS:
        load_subject(entry.target)
