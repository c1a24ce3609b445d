"""What goes into the policy and what comes out: scores, preferences, the students' state, the decision."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from models.student.manifest import HeadKind, Manifest
from router.tasks import GENERAL, Task


@dataclass(slots=True, kw_only=True, frozen=True)
class TaskScores:
    """Calibrated probabilities over all tasks, `general` included; they sum to 1.

    `task` is the verdict: the likeliest task, or `general` when that is not likely enough. `confidence` is the
    probability of the likeliest task, whichever the verdict.
    """

    task: Task
    confidence: float
    probabilities: dict[Task, float]


class Quality(StrEnum):
    """How much quality a request is willing to give up for speed."""

    FAST = "fast"
    BALANCED = "balanced"
    HIGH = "high"
    FULL = "full"


class Priority(StrEnum):
    """The order in which requests are admitted from the queue, and, reversed, refused when it is full."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(slots=True, kw_only=True, frozen=True)
class RoutePreferences:
    """What the request says about its routing; None where it says nothing. It wins over the classifier.
    `online_quality`: whether its answer may be scored afterwards."""

    student: str | None = None
    path: str | None = None
    task: Task | None = None
    quality: Quality = Quality.BALANCED
    priority: Priority | None = None
    cache: bool | None = None
    online_quality: bool | None = None


class Health(StrEnum):
    """Whether a student may be given new requests."""

    READY = "ready"
    LOADING = "loading"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"


@dataclass(slots=True, kw_only=True, frozen=True)
class StudentState:
    """One student at one moment.

    `tasks` empty: it takes every task. `num_running` and `num_waiting` count sequences. `variant` is the precision
    that serves, `head` the head that serves requests which do not need the exact one. `error` says why it is unhealthy.
    """

    name: str
    manifest: Manifest
    variant: str
    health: Health
    tasks: frozenset[Task] = frozenset()
    num_running: int = 0
    num_waiting: int = 0
    max_running: int = 1
    error: str | None = None
    head: HeadKind = "exact"


class Reason(StrEnum):
    """The rule that decided the path: the last one that changed it."""

    WISHED_PATH = "wished_path"
    WISHED_TASK = "wished_task"
    WISHED_QUALITY = "wished_quality"
    TASK = "task"
    PROMPT_LENGTH = "prompt_length"
    MIN_QUALITY = "min_quality"
    LOAD = "load"
    LANGUAGE_UNMEASURED = "language_unmeasured"
    GENERAL = "general"
    UNCLASSIFIED = "unclassified"
    ROUTER_OFF = "router_off"
    CLASSIFIER_UNAVAILABLE = "classifier_unavailable"
    NO_TASK_PATH = "no_task_path"


@dataclass(slots=True, kw_only=True, frozen=True)
class Target:
    """Where a request can go: a path of a student with one of its heads, and the rule that decided the path.

    `head` "exact": the request needs the exact head; "cheap": the cheap one is good enough.
    """

    student: str
    path: str
    reason: Reason
    head: HeadKind = "exact"


class Candidates(NamedTuple):
    """The students that can take a request, best first, and for each that was skipped a sentence why."""

    students: list[StudentState]
    skipped: dict[str, str]

    def without(self, unable: dict[str, str]) -> "Candidates":
        """Skip more of them; `unable` has a sentence for each."""
        left = [student for student in self.students if student.name not in unable]
        return Candidates(left, self.skipped | unable)


@dataclass(slots=True, kw_only=True, frozen=True)
class RouteDecision:
    """Where a request goes, and why.

    `confidence` is the classifier's, None when it was not asked or could not answer. `language` is that of the text,
    None where it has none or does not matter. `fallbacks` are tried in order when the student turns out to be unable.
    `skipped` has a sentence for each student that was skipped.
    """

    student: str
    path: str
    head: HeadKind = "exact"
    task: Task = GENERAL
    confidence: float | None = None
    reason: Reason
    language: str | None = None
    fallbacks: tuple[Target, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        """Where it goes first."""
        return Target(student=self.student, path=self.path, reason=self.reason, head=self.head)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Where it goes, then what is tried instead."""
        return (self.target, *self.fallbacks)
