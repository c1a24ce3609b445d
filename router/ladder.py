"""A student's paths with its heads, by depth and by cost, and which of them are good enough for a task.

It decides nothing: the rules that use it are in `router/policy.py`.
"""

from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple

from models.evaluation.compute import path_multiply_adds
from models.evaluation.verdicts import GateLimits, gate
from models.student.manifest import HeadKind, Manifest, PathFigures
from router.decision import StudentState
from router.quality.live import NOTHING_KNOWN, LiveQuality, PathUse
from router.tasks import Task

DEFAULT_LANGUAGE = "en"
"""What a text without words counts as, such as a formula, where figures of it exist."""


class Rung(NamedTuple):
    """A path, by its place among the student's paths by depth, with a head."""

    depth: int
    head: HeadKind


class Ladder:
    """A student's paths by depth, and what each of them keeps of the full path on one task in one language."""

    def __init__(
        self,
        student: StudentState,
        task: Task,
        floor: float,
        language: str | None = None,
        live: LiveQuality = NOTHING_KNOWN,
    ) -> None:
        self._student = student.name
        self._live = live
        self.manifest = student.manifest
        self.names = [path.name for path in student.manifest.paths_by_depth]
        self._multiply_adds = student.manifest.multiply_adds_by_depth
        self.task = task
        self._variant = student.variant
        self._heads: tuple[HeadKind, ...] = ("cheap", "exact") if student.head == "cheap" else ("exact",)
        self._floor = floor
        self._language = language or spoken_by_default(student.manifest, student.variant)

    @property
    def full_depth(self) -> int:
        return len(self.names) - 1

    @property
    def has_figures(self) -> bool:
        """Whether the precision that serves has figures per task; a student that was measured before has none."""
        return self._variant in self.manifest.languages_by_variant

    @property
    def is_language_measured(self) -> bool:
        """Figures that name no language say nothing about languages."""
        measured = self.manifest.languages_by_variant.get(self._variant)
        return not measured or self._language in measured

    def is_deeper(self, depth: int, other: int) -> bool:
        """Whether its layers compute more; paths that differ only in their exits are equally deep."""
        more = self._multiply_adds[depth] > self._multiply_adds[other]
        return depth > other and (depth == self.full_depth or more)

    def keeps(self, depth: int, level: float) -> bool:
        """Whether a path keeps at least `level` and the task's floor, and is not out; the full path always does."""
        is_out = self.is_out(Rung(depth, "exact"))
        return depth == self.full_depth or (not is_out and self._score(depth) >= max(self._floor, level))

    def keeps_floor(self, depth: int) -> bool:
        """Whether a path keeps the task's floor, if it has one."""
        return not self._floor or self.keeps(depth, self._floor)

    def first_that_keeps(self, level: float, *, as_deep_as: int = 0) -> int:
        """The shallowest path that keeps `level` and is at least `as_deep_as`; among equally deep ones, the best."""
        depths = range(len(self.names))
        first = next(depth for depth in depths if not self.is_deeper(as_deep_as, depth) and self.keeps(depth, level))
        equals = takewhile(lambda depth: not self.is_deeper(depth, first), depths[first:])
        return max(equals, key=self._score)

    def is_full(self, rung: Rung) -> bool:
        """Whether it is the full path with the exact head, which everything else is compared with."""
        return rung == (self.full_depth, "exact")

    def is_out(self, rung: Rung) -> bool:
        """Whether what live answers showed took it out of default routing."""
        return self._use(rung) in self._live.out and not self.is_full(rung)

    def is_enough_under_load(self, rung: Rung) -> bool:
        """Whether live answers show that it keeps enough for a busy student."""
        return self._use(rung) in self._live.enough_under_load

    def _use(self, rung: Rung) -> PathUse:
        return PathUse(self._student, self.task, self.names[rung.depth], rung.head)

    def is_faithful(self, rung: Rung) -> bool:
        figures = self._figures(rung)
        return figures is not None and figures.verdict_fidelity == "passed"

    def passes_gate(self, rung: Rung, limits: GateLimits) -> bool:
        figures = self._figures(rung)
        return figures is not None and gate(figures, limits) == "passed"

    def cheapest(self, is_enough: Callable[[Rung], bool], *, as_deep_as: int = 0) -> Rung:
        """Of the paths that are at least `as_deep_as` and good enough, with either head that serves, the one that
        computes least. Among equally deep ones the path at `as_deep_as` comes first."""
        depths = [depth for depth in range(len(self.names)) if not self.is_deeper(as_deep_as, depth)]
        rungs = sorted((Rung(depth, head) for depth in depths for head in self._heads), key=self.cost)
        best = next(rung for rung in rungs if self.is_full(rung) or is_enough(rung))
        own = Rung(as_deep_as, best.head)
        return own if not self.is_deeper(best.depth, as_deep_as) and is_enough(own) else best

    def cost(self, rung: Rung) -> int:
        """Multiply-adds of an answer token."""
        return path_multiply_adds(self.manifest, self.manifest.paths_by_depth[rung.depth], head=rung.head)

    def fastest_head(self, depth: int) -> HeadKind:
        """The cheapest head that serves and was measured on a path, and is not out there."""
        rungs = (Rung(depth, head) for head in self._heads)
        able = (rung.head for rung in rungs if self._figures(rung) is not None and not self.is_out(rung))
        return next(able, "exact")

    def _figures(self, rung: Rung) -> PathFigures | None:
        return self.manifest.find_figures(self.names[rung.depth], rung.head, self.task, self._variant, self._language)

    def _score(self, depth: int) -> float:
        """The low end of the measured interval: what the path keeps for sure. A path without a figure keeps nothing."""
        measured = self.manifest.find_retention(self.names[depth], self.task, self._variant)
        return -1.0 if measured is None else measured.low


def spoken_by_default(manifest: Manifest, variant: str) -> str:
    """The language that a text without words counts as: English, or what was measured where that was not."""
    measured = manifest.languages_by_variant.get(variant, frozenset())
    return DEFAULT_LANGUAGE if DEFAULT_LANGUAGE in measured or not measured else min(measured)
