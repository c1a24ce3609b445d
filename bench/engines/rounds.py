"""Runs cases in interleaved rounds: each starts every subject anew, one after another, so that noise affects all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.engines.cases import Case, Plan, Role
from bench.process import SubjectProcess
from bench.protocol import Absent, Answer, Failed, Opened, Setup, Unsupported
from engines.machine import foreign_share, read_cpu_use

TASK_TIMEOUT_S = 300.0
MAX_FOREIGN_SHARE = 0.1
WINDOWS_PER_CASE = 256
"""Every case has windows of its own: the same for every subject, different from those of the cases before it."""


@dataclass(slots=True, kw_only=True, frozen=True)
class SubjectEntry:
    """A subject by name; `target` is MODULE:CLASS."""

    name: str
    role: Role
    target: str


SUBJECTS = (
    SubjectEntry(name="fenhe", role=Role.FENHE, target="bench.engines.ours:Fenhe"),
    SubjectEntry(name="fenhe serve", role=Role.SERVE, target="bench.engines.served:FenheServe"),
    SubjectEntry(name="llama.cpp", role=Role.PEER, target="bench.peers.llama_cpp:LlamaCpp"),
    SubjectEntry(name="openvino", role=Role.PEER, target="bench.peers.openvino:OpenVino"),
    SubjectEntry(name="vllm", role=Role.PEER, target="bench.peers.vllm:Vllm"),
)
PEER_NAMES = tuple(entry.name for entry in SUBJECTS if entry.role is Role.PEER)


@dataclass(slots=True, kw_only=True, frozen=True)
class Record:
    """One answer. `number` counts rounds from 0."""

    case: str
    subject: str
    number: int
    answer: Answer
    label: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class Outcome:
    """The result of all rounds. `notes` say what is absent or failed; `faults` are the notes on our own subjects."""

    records: tuple[Record, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    faults: tuple[str, ...] = ()


class Rounds:
    """Collects records over the rounds. A subject that is absent or does not start is not asked again."""

    def __init__(
        self,
        *,
        cases: Mapping[str, Case],
        subjects: Sequence[SubjectEntry],
        plan: Plan,
        setup: Setup,
        environ: Mapping[str, str],
        report: Callable[[str], None],
        timeout_s: float = TASK_TIMEOUT_S,
    ) -> None:
        self._cases = cases
        self._subjects = subjects
        self._plan = plan
        self._setup = setup
        self._environ = environ
        self._report = report
        self._timeout_s = timeout_s
        self._records: list[Record] = []
        self._versions: dict[str, str] = {}
        self._notes: list[str] = []
        self._faults: list[str] = []
        self._gone: set[str] = set()

    def run(self, num_rounds: int) -> Outcome:
        for number in range(num_rounds):
            for subject in self._subjects:
                cases = self._cases_of(subject, number)
                if cases and subject.name not in self._gone:
                    self._report(f"round {number + 1} of {num_rounds}: {subject.name}: {', '.join(cases)}")
                    self._run_watched(subject, number, cases)
        return Outcome(
            records=tuple(self._records),
            versions=self._versions,
            notes=tuple(self._notes),
            faults=tuple(self._faults),
        )

    def _cases_of(self, subject: SubjectEntry, number: int) -> dict[str, Case]:
        return {
            name: case
            for name, case in self._cases.items()
            if subject.role in case.roles and (number == 0 or not case.is_once)
        }

    def _run_watched(self, subject: SubjectEntry, number: int, cases: Mapping[str, Case]) -> None:
        """Run, and note when other processes took much of the machine at the time."""
        before = read_cpu_use()
        self._run_subject(subject, number, cases)
        after = read_cpu_use()
        if before is None or after is None or subject.name in self._gone:
            return
        share = foreign_share(before, after)
        if share > MAX_FOREIGN_SHARE:
            self._notes.append(
                f"{subject.name}: round {number + 1}: other processes took {share:.0%} of the cores; measure again"
            )

    def _run_subject(self, subject: SubjectEntry, number: int, cases: Mapping[str, Case]) -> None:
        with SubjectProcess(subject.target, environ=self._environ, timeout_s=self._timeout_s) as process:
            answer = process.ask(self._setup)
            if not isinstance(answer, Opened):
                self._lose(subject, "start", answer)
                return
            self._versions[subject.name] = answer.version
            for record in self._ask_cases(process, subject, number, cases):
                if isinstance(record.answer, Failed | Unsupported | Absent):
                    self._lose(subject, f"{record.case} {record.label}".strip(), record.answer)
                else:
                    self._records.append(record)

    def _ask_cases(
        self, process: SubjectProcess, subject: SubjectEntry, number: int, cases: Mapping[str, Case]
    ) -> Iterator[Record]:
        """A failed task is the last of its case and label; the other labels still get their turn."""
        for name, case in cases.items():
            failed: set[str] = set()
            self._plan.workload.num_windows = WINDOWS_PER_CASE * list(self._cases).index(name)
            for step in case.steps(self._plan, subject.role):
                if step.label in failed:
                    continue
                answer = process.ask(step.task)
                is_bad = isinstance(answer, Failed | Unsupported | Absent)
                if is_bad:
                    failed.add(step.label)
                if is_bad or not step.is_warm_up:
                    yield Record(case=name, subject=subject.name, number=number, answer=answer, label=step.label)

    def _lose(self, subject: SubjectEntry, what: str, answer: Answer) -> None:
        if isinstance(answer, Absent):
            note = f"{subject.name}: absent: {answer.reason}"
        elif isinstance(answer, Unsupported):
            note = f"{subject.name}: {what}: not possible: {answer.reason}"
        else:
            error = answer.error if isinstance(answer, Failed) else f"unexpected answer {answer}"
            note = f"{subject.name}: {what}: failed: {error}"
        if what == "start":
            self._gone.add(subject.name)
        if note not in self._notes:
            self._notes.append(note)
            if subject.role is not Role.PEER:
                self._faults.append(note)
