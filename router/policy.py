"""The decision where a request goes: which student of the pool, and which of its paths.

Pure functions: the same scores, preferences, prompt length, pool and settings give the same decision.

A path is chosen in steps: the manifest names one for the task, a long prompt may need a deeper one, the least quality
may need a deeper one still, and then `fast` requests, and requests to a busy student, step down to the shallowest path
that keeps enough. What may surprise: stepping down undoes what the prompt's length asked for, though never what the
request's quality asks for.

An example: paths `a` and `b` keep 0.85 and 0.96 of the full path's score on math. The manifest names `b` for math, and
its depth rules ask for the full path above 512 prompt tokens. With default settings math goes to

    quality    tokens   idle                     busy
    balanced      100   b     (task)             b     (task)
    balanced     1000   full  (prompt_length)    b     (load): it keeps 0.95
    fast          100   b     (task)             a     (load): it keeps 0.80
    fast         1000   b     (wished_quality)   a     (load)
    full         1000   full  (wished_quality)   full  (wished_quality)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Annotated

from msgspec import Meta

from models.bounds import Share, out_of_bounds
from models.errors import Problem, Unavailable, UnknownModel
from models.student.manifest import Manifest
from router.decision import (
    Candidates,
    Health,
    Quality,
    Reason,
    RouteDecision,
    RoutePreferences,
    StudentState,
    Target,
    TaskScores,
)
from router.tasks import GENERAL, SUBJECTS, Task

RETRY_AFTER_S = 5.0
MAX_NAME_CHARS = 200


@dataclass(slots=True, kw_only=True, frozen=True)
class PolicyConfig:
    """How much of the full path's score a path must keep, and when a student counts as busy.

    `balanced`, `fast` and `fast_under_load` are for requests of that quality; `min_retention` holds whatever the
    quality. Running and waiting sequences count for `busy_at`.
    """

    min_retention: Annotated[
        dict[Task, Share],
        Meta(description="per task, share of the full path's score that a path must keep", extra={"unset": "none"}),
    ] = field(default_factory=dict)
    balanced: Annotated[Share, Meta(description="share of the full path's score that a path must keep")] = 0.95
    fast: Annotated[Share, Meta(description="the same for requests with quality fast")] = 0.90
    fast_under_load: Annotated[
        Share, Meta(description="the same for requests with quality fast while the student is busy")
    ] = 0.80
    busy_at: Annotated[
        float, Meta(gt=0.0, description="a student is busy when its sequences are this share of max_running")
    ] = 0.9
    step_down: Annotated[
        bool, Meta(description="whether requests take shallower paths while their student is busy")
    ] = True

    def level(self, quality: Quality, *, under_load: bool) -> float:
        """The least retention for a quality; `full` keeps everything."""
        if quality is Quality.FULL:
            return 1.0
        if quality is Quality.BALANCED:
            return self.balanced
        return self.fast_under_load if under_load else self.fast

    def problems(self) -> list[Problem]:
        """Everything wrong with the values; empty when they are sound."""
        found = out_of_bounds(self)
        if not self.fast_under_load <= self.fast <= self.balanced:
            said = (
                "fast_under_load, fast and balanced must not fall in this order, "
                f"not {self.fast_under_load}, {self.fast}, {self.balanced}"
            )
            found.append(Problem(setting="fast_under_load", others=("fast", "balanced"), said=said))
        found += [
            Problem(
                setting=f"min_retention.{task}",
                said=f"min_retention.{task} has no effect: name one of {', '.join(SUBJECTS)}",
            )
            for task in self.min_retention
            if task not in SUBJECTS
        ]
        return found


@dataclass(slots=True, kw_only=True, frozen=True)
class PathChoice:
    """A path of one student, and the rule that decided it."""

    path: str
    reason: Reason


def needs_task(preferences: RoutePreferences, num_students: int) -> bool:
    """Whether to classify: not when the request names its task, nor when student and path are settled without one."""
    if preferences.task is not None:
        return False
    is_student_settled = preferences.student is not None or num_students < 2
    is_path_settled = preferences.path is not None or preferences.quality is Quality.FULL
    return not (is_student_settled and is_path_settled)


def decide(
    *,
    scores: TaskScores | None,
    preferences: RoutePreferences,
    num_prompt_tokens: int,
    candidates: Candidates,
    config: PolicyConfig,
    unscored: Reason = Reason.CLASSIFIER_UNAVAILABLE,
) -> RouteDecision:
    """Where the request goes. `scores` None: the classifier was not asked, or it could not answer, and `unscored` says
    why."""
    task, reason = find_task(scores, preferences, unscored)
    targets = []
    for student in candidates.students:
        choice = choose_path(student, task, reason, preferences, num_prompt_tokens, config)
        targets.append(Target(student=student.name, path=choice.path, reason=choice.reason))
    return RouteDecision(
        student=targets[0].student,
        path=targets[0].path,
        task=task,
        confidence=None if scores is None else scores.confidence,
        reason=targets[0].reason,
        fallbacks=tuple(targets[1:]),
        skipped=candidates.skipped,
    )


def decide_together(decisions: Sequence[RouteDecision], students: Sequence[StudentState]) -> tuple[int, RouteDecision]:
    """One decision for all prompts of a request: on every student, the deepest path that any of them takes there.

    The index is that of the prompt that decided the path on the first student.
    """
    deepest = [
        max(range(len(decisions)), key=lambda index: _depth(decisions[index].targets[place], student))
        for place, student in enumerate(students)
    ]
    targets = [decisions[index].targets[place] for place, index in enumerate(deepest)]
    return deepest[0], replace(decisions[deepest[0]], fallbacks=tuple(targets[1:]))


def _depth(target: Target, student: StudentState) -> int:
    return [path.name for path in student.manifest.paths_by_depth].index(target.path)


def find_task(
    scores: TaskScores | None, preferences: RoutePreferences, unscored: Reason = Reason.CLASSIFIER_UNAVAILABLE
) -> tuple[Task, Reason]:
    """The task a request is served as, and why: named by the request, found by the classifier, or `unscored`."""
    if preferences.task is not None:
        return preferences.task, Reason.WISHED_TASK
    if scores is None:
        return GENERAL, unscored
    if scores.task != GENERAL:
        return scores.task, Reason.TASK
    likeliest = max(scores.probabilities, key=lambda task: scores.probabilities[task])
    return GENERAL, Reason.GENERAL if likeliest == GENERAL else Reason.UNCLASSIFIED


def choose_student(
    scores: TaskScores | None, preferences: RoutePreferences, pool: Sequence[StudentState]
) -> Candidates:
    """The students that can take the request, best first, and for each that was skipped a sentence why.

    Raises: UnknownModel (no such student or path), Unavailable (none is left).
    """
    task, _ = find_task(scores, preferences)
    considered = _considered(preferences, pool)
    skipped = {
        student.name: why for student in considered if (why := _why_skipped(student, preferences.path)) is not None
    }
    able = [student for student in considered if student.name not in skipped]
    if not able:
        listed = "; ".join(f"`{name}`: {why}" for name, why in skipped.items()) or "the server has none"
        raise Unavailable(f"no student can take this request now: {listed}", retry_after_s=RETRY_AFTER_S)
    # Sorting is stable: among equals the order of the configuration decides.
    return Candidates(sorted(able, key=lambda student: _rank(student, task)), skipped)


def _considered(preferences: RoutePreferences, pool: Sequence[StudentState]) -> list[StudentState]:
    considered = [student for student in pool if preferences.student in (None, student.name)]
    if preferences.student is not None and not considered:
        known = [student.name for student in pool]
        raise UnknownModel(_unknown("student", preferences.student, known), param="model")
    if (
        considered
        and preferences.path is not None
        and not any(_has_path(one.manifest, preferences.path) for one in considered)
    ):
        known = [f"{student.name}:{path.name}" for student in considered for path in student.manifest.paths]
        raise UnknownModel(_unknown("path", preferences.path, known), param="path")
    return considered


def _unknown(kind: str, name: str, known: list[str]) -> str:
    listed = ", ".join(f"`{one}`" for one in known) or "none"
    return f"the {kind} `{name[:MAX_NAME_CHARS]}` does not exist; this server has {listed}"


def _has_path(manifest: Manifest, name: str) -> bool:
    return any(path.name == name for path in manifest.paths)


def _why_skipped(student: StudentState, named_path: str | None) -> str | None:
    if named_path is not None and not _has_path(student.manifest, named_path):
        return f"it has no path `{named_path[:MAX_NAME_CHARS]}`"
    if student.health is Health.DRAINING:
        return "it is draining and takes no new requests"
    if student.health is Health.UNHEALTHY:
        return "it is unhealthy" + (f": {student.error}" if student.error else "")
    return None


def _rank(student: StudentState, task: Task) -> tuple[bool, bool, bool, float]:
    """Lower is better: loaded before loading, then those made for the task, then the less occupied."""
    is_excluded = bool(student.tasks) and task not in student.tasks
    return student.health is Health.LOADING, is_excluded, task not in student.tasks, occupancy(student)


def occupancy(student: StudentState) -> float:
    """Running and waiting sequences over `max_running`; above 1 some wait."""
    return (student.num_running + student.num_waiting) / student.max_running


def choose_path(
    student: StudentState,
    task: Task,
    reason: Reason,
    preferences: RoutePreferences,
    num_prompt_tokens: int,
    config: PolicyConfig,
) -> PathChoice:
    """The path a request takes on a student, which has the path that the request names, if any. `reason` is that of its
    task."""
    full = student.manifest.full_path.name
    if preferences.path is not None:
        return PathChoice(path=preferences.path, reason=Reason.WISHED_PATH)
    if preferences.quality is Quality.FULL:
        return PathChoice(path=full, reason=Reason.WISHED_QUALITY)
    if task == GENERAL:
        return PathChoice(path=full, reason=reason)
    ladder = _Ladder(student, task, config.min_retention.get(task, 0.0))
    depth, reason = _needed_depth(ladder, reason, num_prompt_tokens)
    depth, reason = _raise_to_quality(ladder, depth, reason, config.level(preferences.quality, under_load=False))
    for level, why in _levels_to_step_down(preferences.quality, student, config):
        lower = ladder.first_that_keeps(level)
        if ladder.is_deeper(depth, lower):
            depth, reason = lower, why
    return PathChoice(path=ladder.names[depth], reason=reason)


class _Ladder:
    """A student's paths by depth, and how much of the full path's score on one task each keeps."""

    def __init__(self, student: StudentState, task: Task, floor: float) -> None:
        self.manifest = student.manifest
        self.names = [path.name for path in student.manifest.paths_by_depth]
        self._layers = student.manifest.layers_by_depth
        self.task = task
        self._variant = student.variant
        self._floor = floor

    @property
    def full_depth(self) -> int:
        return len(self.names) - 1

    def is_deeper(self, depth: int, other: int) -> bool:
        """Paths with the same number of layers, which differ in their exits, are equally deep."""
        return depth > other and (depth == self.full_depth or self._layers[depth] > self._layers[other])

    def keeps(self, depth: int, level: float) -> bool:
        """Whether a path keeps at least `level` and the task's floor; the full path always does."""
        return depth == self.full_depth or self._score(depth) >= max(self._floor, level)

    def first_that_keeps(self, level: float, *, as_deep_as: int = 0) -> int:
        """The shallowest path that keeps `level` and is at least `as_deep_as`; among equally deep ones, the best."""
        depths = range(len(self.names))
        first = next(depth for depth in depths if not self.is_deeper(as_deep_as, depth) and self.keeps(depth, level))
        equals = takewhile(lambda depth: not self.is_deeper(depth, first), depths[first:])
        return max(equals, key=self._score)

    def _score(self, depth: int) -> float:
        """The low end of the measured interval: what the path keeps for sure. A path without a figure keeps nothing."""
        measured = self.manifest.find_retention(self.names[depth], self.task, self._variant)
        return -1.0 if measured is None else measured.low


def _needed_depth(ladder: _Ladder, reason: Reason, num_prompt_tokens: int) -> tuple[int, Reason]:
    """The depth for the task, or the one for the prompt's length if that is deeper."""
    named = ladder.manifest.tasks.get(ladder.task)
    depth = ladder.full_depth if named is None else ladder.names.index(named)
    if named is None:
        reason = Reason.NO_TASK_PATH
    by_length = _depth_by_length(ladder, num_prompt_tokens)
    return (by_length, Reason.PROMPT_LENGTH) if ladder.is_deeper(by_length, depth) else (depth, reason)


def _depth_by_length(ladder: _Ladder, num_prompt_tokens: int) -> int:
    """The full path for a prompt longer than every rule allows; the shallowest where there are no rules."""
    rules = ladder.manifest.depth_rules
    for rule in rules:
        if rule.max_prompt_tokens is None or num_prompt_tokens <= rule.max_prompt_tokens:
            return ladder.names.index(rule.path)
    return ladder.full_depth if rules else 0


def _raise_to_quality(ladder: _Ladder, depth: int, reason: Reason, level: float) -> tuple[int, Reason]:
    if ladder.keeps(depth, level):
        return depth, reason
    return ladder.first_that_keeps(level, as_deep_as=depth), Reason.MIN_QUALITY


def _levels_to_step_down(quality: Quality, student: StudentState, config: PolicyConfig) -> list[tuple[float, Reason]]:
    """How much a path must keep for a request to step down to it, and the reason if it does."""
    levels = []
    if quality is Quality.FAST:
        levels.append((config.level(quality, under_load=False), Reason.WISHED_QUALITY))
    if config.step_down and occupancy(student) >= config.busy_at:
        levels.append((config.level(quality, under_load=True), Reason.LOAD))
    return levels
