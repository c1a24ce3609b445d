"""The decision where a request goes: which student of the pool, and which of its paths with which head.

Pure functions: the same scores, preferences, prompt length, language, pool and settings give the same decision.

A path is chosen in steps: the manifest names one for the task, a long prompt may need a deeper one, what the request's
quality asks for may need a deeper one still, and then `fast` requests, and requests to a busy student, step down to the
cheapest path that is good enough. What may surprise: stepping down undoes what the prompt's length asked for, though
never what the request's quality asks for. The full path with the exact head is good enough for everything.

An example: with the cheap head, paths `b` and `full` pass the gate for math and `a` does not; none passes fidelity. `a`
and `b` keep 0.85 and 0.96 of the full path's score by the older measure. The manifest names `b` for math, and its depth
rules ask for the full path above 512 prompt tokens. With default settings math goes to

    quality    tokens   idle                              busy
    balanced      100   b, cheap head    (task)           b, cheap head    (task)
    balanced     1000   full, cheap head (prompt_length)  b, cheap head    (load)
    high          100   full, exact head (min_quality)    full, exact head (min_quality)
    fast          100   b, cheap head    (task)           a, cheap head    (load): it keeps 0.80
    full          100   full, exact head (wished_quality) full, exact head (wished_quality)

A student that was measured before there were such figures goes by the older measure alone, with the exact head:

    balanced      100   b     (task)             b     (task)
    balanced     1000   full  (prompt_length)    b     (load): it keeps 0.95
    fast          100   b     (task)             a     (load): it keeps 0.80
    fast         1000   b     (wished_quality)   a     (load)
    full         1000   full  (wished_quality)   full  (wished_quality)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

from msgspec import Meta

from models.bounds import Share, out_of_bounds
from models.errors import Problem, Unavailable, UnknownModel
from models.evaluation.verdicts import DEFAULT_LIMITS, GateLimits
from models.student.manifest import HeadKind, Manifest
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
from router.ladder import Ladder, Rung
from router.quality.live import NOTHING_KNOWN, LiveQuality
from router.tasks import GENERAL, SUBJECTS, Task

RETRY_AFTER_S = 5.0
MAX_NAME_CHARS = 200


Ratio = Annotated[float, Meta(ge=1.0)]


def _spell(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {limit:g}" for task, limit in limits.items())


def _replace(defaults: Mapping[str, float], given: Mapping[Task, float]) -> dict[str, float]:
    return {**defaults, **{str(task): limit for task, limit in given.items()}}


@dataclass(slots=True, kw_only=True, frozen=True)
class PolicyConfig:
    """What a path must pass or keep, and when a student counts as busy.

    `rule` is for students with figures per task: what requests of quality `balanced` ask for, and `high` and `fast`
    besides their own. The two limits are the gate's. `balanced`, `fast` and `fast_under_load` are the retention that
    requests of that quality ask for, `min_retention` is asked for whatever the quality. Running and waiting sequences
    count for `busy_at`.
    """

    rule: Annotated[
        Literal["gate", "fidelity", "retention"],
        Meta(description="what a path must pass for requests with quality balanced, on students with figures per task"),
    ] = "gate"
    max_own_perplexity: Annotated[
        dict[Task, Ratio],
        Meta(
            description="per task, the gate's limit for perplexity on the full path's own words, over the full path's",
            extra={"unset": _spell(DEFAULT_LIMITS.max_own_perplexity)},
        ),
    ] = field(default_factory=dict)
    min_information: Annotated[
        dict[Task, Share],
        Meta(
            description="per task, the gate's limit for the share of the full path's information that a path must keep",
            extra={"unset": _spell(DEFAULT_LIMITS.min_information)},
        ),
    ] = field(default_factory=dict)
    min_retention: Annotated[
        dict[Task, Share],
        Meta(description="per task, share of the full path's score that a path must keep", extra={"unset": "none"}),
    ] = field(default_factory=dict)
    balanced: Annotated[
        Share, Meta(description="the same for requests with quality balanced, by the rule retention")
    ] = 0.95
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
        """The least retention for a quality; for `high` and `full` no retention is enough."""
        if quality in (Quality.HIGH, Quality.FULL):
            return math.inf
        if quality is Quality.BALANCED:
            return self.balanced
        return self.fast_under_load if under_load else self.fast

    @property
    def limits(self) -> GateLimits:
        """The gate's limits: the settings, and for tasks that they do not name the default."""
        return GateLimits(
            max_own_perplexity=_replace(DEFAULT_LIMITS.max_own_perplexity, self.max_own_perplexity),
            min_information=_replace(DEFAULT_LIMITS.min_information, self.min_information),
        )

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
    """A path of one student with one of its heads, and the rule that decided it."""

    path: str
    reason: Reason
    head: HeadKind = "exact"


def needs_task(preferences: RoutePreferences, num_students: int) -> bool:
    """Whether to classify: not when the request names its task, nor when student and path are settled without one."""
    if preferences.task is not None:
        return False
    is_student_settled = preferences.student is not None or num_students < 2
    is_path_settled = preferences.path is not None or preferences.quality is Quality.FULL
    return not (is_student_settled and is_path_settled)


def needs_language(preferences: RoutePreferences) -> bool:
    """Whether the language of the text has a say: not when the request names its path, or takes the full one."""
    return preferences.path is None and preferences.quality is not Quality.FULL


def decide(
    *,
    scores: TaskScores | None,
    preferences: RoutePreferences,
    num_prompt_tokens: int,
    candidates: Candidates,
    config: PolicyConfig,
    unscored: Reason = Reason.CLASSIFIER_UNAVAILABLE,
    language: str | None = None,
    live: LiveQuality = NOTHING_KNOWN,
) -> RouteDecision:
    """Where the request goes. `scores` None: the classifier was not asked, or it could not answer, and `unscored` says
    why. `language` is that of the text, None where it has none (`router.language`). `live` is what live answers showed
    of paths."""
    task, reason = find_task(scores, preferences, unscored)
    targets = []
    for student in candidates.students:
        choice = choose_path(student, task, reason, preferences, num_prompt_tokens, config, language, live)
        targets.append(Target(student=student.name, path=choice.path, reason=choice.reason, head=choice.head))
    return RouteDecision(
        student=targets[0].student,
        path=targets[0].path,
        task=task,
        confidence=None if scores is None else scores.confidence,
        reason=targets[0].reason,
        head=targets[0].head,
        language=language,
        fallbacks=tuple(targets[1:]),
        skipped=candidates.skipped,
    )


def decide_together(decisions: Sequence[RouteDecision], students: Sequence[StudentState]) -> tuple[int, RouteDecision]:
    """One decision for all prompts of a request: on every student, the deepest path that any of them takes there, with
    the exact head if any of them takes it.

    The index is that of the prompt that decided the path on the first student.
    """
    deepest = [
        max(range(len(decisions)), key=lambda index: _depth(decisions[index].targets[place], student))
        for place, student in enumerate(students)
    ]
    targets = [
        replace(decisions[index].targets[place], head=_head_for_all([one.targets[place] for one in decisions]))
        for place, index in enumerate(deepest)
    ]
    return deepest[0], replace(decisions[deepest[0]], head=targets[0].head, fallbacks=tuple(targets[1:]))


def _head_for_all(targets: Sequence[Target]) -> HeadKind:
    """What was found of the cheap head on a deeper path holds for that prompt's task alone."""
    return "cheap" if all(target.head == "cheap" for target in targets) else "exact"


def _depth(target: Target, student: StudentState) -> tuple[int, bool]:
    return [path.name for path in student.manifest.paths_by_depth].index(target.path), target.head == "exact"


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
    language: str | None = None,
    live: LiveQuality = NOTHING_KNOWN,
) -> PathChoice:
    """The path a request takes on a student, which has the path that the request names, if any. `reason` is that of its
    task, `language` that of its text, None where it has none."""
    full = student.manifest.full_path.name
    if preferences.path is not None:
        head: HeadKind = "exact" if preferences.quality is Quality.FULL else student.head
        return PathChoice(path=preferences.path, head=head, reason=Reason.WISHED_PATH)
    if preferences.quality is Quality.FULL:
        return PathChoice(path=full, reason=Reason.WISHED_QUALITY)
    ladder = Ladder(student, task, config.min_retention.get(task, 0.0), language, live)
    if not ladder.is_language_measured:
        return PathChoice(path=full, reason=Reason.LANGUAGE_UNMEASURED)
    if task == GENERAL:
        rung = _find_enough(ladder, preferences.quality, config, as_deep_as=ladder.full_depth)
        return PathChoice(path=full, head=rung.head, reason=reason)
    rung, reason = _choose_rung(ladder, student, reason, preferences.quality, num_prompt_tokens, config)
    return PathChoice(path=ladder.names[rung.depth], head=rung.head, reason=reason)


def _choose_rung(
    ladder: Ladder,
    student: StudentState,
    reason: Reason,
    quality: Quality,
    num_prompt_tokens: int,
    config: PolicyConfig,
) -> tuple[Rung, Reason]:
    depth, reason = _needed_depth(ladder, reason, num_prompt_tokens)
    rung = _find_enough(ladder, quality, config, as_deep_as=depth)
    if rung.depth != depth:
        reason = Reason.MIN_QUALITY
    for lower, why in _steps_down(ladder, quality, config, is_busy=occupancy(student) >= config.busy_at):
        if ladder.is_deeper(rung.depth, lower.depth):
            rung, reason = lower, why
    if quality is Quality.FAST:
        rung = Rung(rung.depth, ladder.fastest_head(rung.depth))
    return rung, reason


def _needed_depth(ladder: Ladder, reason: Reason, num_prompt_tokens: int) -> tuple[int, Reason]:
    """The depth for the task, or the one for the prompt's length if that is deeper."""
    named = ladder.manifest.tasks.get(ladder.task)
    depth = ladder.full_depth if named is None else ladder.names.index(named)
    if named is None:
        reason = Reason.NO_TASK_PATH
    by_length = _depth_by_length(ladder, num_prompt_tokens)
    return (by_length, Reason.PROMPT_LENGTH) if ladder.is_deeper(by_length, depth) else (depth, reason)


def _depth_by_length(ladder: Ladder, num_prompt_tokens: int) -> int:
    """The full path for a prompt longer than every rule allows; the shallowest where there are no rules."""
    rules = ladder.manifest.depth_rules
    for rule in rules:
        if rule.max_prompt_tokens is None or num_prompt_tokens <= rule.max_prompt_tokens:
            return ladder.names.index(rule.path)
    return ladder.full_depth if rules else 0


def _find_enough(ladder: Ladder, quality: Quality, config: PolicyConfig, *, as_deep_as: int) -> Rung:
    """The least path that is good enough and `as_deep_as`: by its figures, or by its retention where it has none."""
    if ladder.has_figures:
        return ladder.cheapest(partial(_is_enough, ladder, quality, config), as_deep_as=as_deep_as)
    level = config.level(quality, under_load=False)
    depth = as_deep_as if ladder.keeps(as_deep_as, level) else ladder.first_that_keeps(level, as_deep_as=as_deep_as)
    return Rung(depth, "exact")


def _is_enough(ladder: Ladder, quality: Quality, config: PolicyConfig, rung: Rung) -> bool:
    """Whether a path's figures are good enough; `high` asks for fidelity and for all that `balanced` asks for."""
    if ladder.is_full(rung):
        return True
    if ladder.is_out(rung) or not ladder.keeps_floor(rung.depth):
        return False
    if (quality is Quality.HIGH or config.rule == "fidelity") and not ladder.is_faithful(rung):
        return False
    if config.rule == "retention" and not ladder.keeps(rung.depth, config.balanced):
        return False
    # Retention says nothing about heads: there the gate decides about the cheap one.
    is_gated = config.rule == "gate" or (config.rule == "retention" and rung.head == "cheap")
    return not is_gated or ladder.passes_gate(rung, config.limits)


def _steps_down(
    ladder: Ladder, quality: Quality, config: PolicyConfig, *, is_busy: bool
) -> Iterator[tuple[Rung, Reason]]:
    """What a request may step down to, whatever task and length ask for, and the reason if it does."""
    if quality is Quality.FAST:
        yield _keeping(ladder, config.level(quality, under_load=False)), Reason.WISHED_QUALITY
    if not (is_busy and config.step_down):
        return
    if quality is not Quality.HIGH:
        yield ladder.cheapest(ladder.is_enough_under_load), Reason.LOAD
    if ladder.has_figures:
        yield _find_enough(ladder, quality, config, as_deep_as=0), Reason.LOAD
    if quality is Quality.FAST or not ladder.has_figures:
        yield _keeping(ladder, config.level(quality, under_load=True)), Reason.LOAD


def _keeping(ladder: Ladder, level: float) -> Rung:
    return Rung(ladder.first_that_keeps(level), "exact")
