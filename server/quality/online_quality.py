"""What paths keep on live traffic: scores by path and task, and the controller that routing listens to.

Scores nothing itself: `scorer.py` does, and brings the scores here.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from engines.answer_score import AnswerScore
from models.errors import InvalidParameter, NotFound
from router.quality.config import OnlineQualityConfig
from router.quality.controller import (
    Action,
    Change,
    Pin,
    Pinned,
    Rules,
    Standing,
    State,
    decide,
    fix,
    forget_student,
    live_quality,
    pin,
    unpin,
)
from router.quality.live import NOTHING_KNOWN, LiveQuality, PathUse
from router.quality.window import Figure, Window
from router.tasks import TASKS, Task
from server.quality.pins import pin_problems, settled_pins
from server.students.student import ServedStudent

logger = logging.getLogger(__name__)

MAX_CHANGES = 100
STALE_S = 60.0
"""Without new scores a figure is made anew when it is this old: old scores lose weight."""


@dataclass(slots=True, kw_only=True)
class Held:
    """Everything about one path on one task."""

    window: Window = field(default_factory=Window)
    figure: Figure | None = None
    made_s: float = 0.0


@dataclass(slots=True, kw_only=True, frozen=True)
class Row:
    """A path as it is shown. `figure` None: it has no scores that weigh anything."""

    use: PathUse
    figure: Figure | None
    floor: float
    standing: Standing


@dataclass(slots=True, kw_only=True, frozen=True)
class DatedChange:
    """`at` is in seconds since 1970."""

    at: float
    change: Change


class OnlineQuality:
    """Owned by the loop. `adapt` tells the router, `students` are those of the pool."""

    def __init__(
        self,
        config: Callable[[], OnlineQualityConfig],
        students: Callable[[], Sequence[ServedStudent]],
        adapt: Callable[[LiveQuality], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._students = students
        self._adapt = adapt
        self._now_s = now_s
        self._held: dict[PathUse, Held] = {}
        self._state = State()
        self._live = NOTHING_KNOWN
        self.changes: deque[DatedChange] = deque(maxlen=MAX_CHANGES)
        self.num_changes: Counter[str] = Counter()
        self.num_scored: Counter[tuple[PathUse, bool]] = Counter()
        """By path, and whether nobody had asked for the answer."""
        self.left_out: Counter[str] = Counter()

    @property
    def config(self) -> OnlineQualityConfig:
        return self._config()

    @property
    def pins(self) -> dict[Pinned, Pin]:
        return dict(self._state.all_pins)

    def add(self, use: PathUse, score: AnswerScore, *, is_shadow: bool) -> Figure | None:
        """Take a score in, and act on what it makes of the path where the settings say so."""
        held = self._held.setdefault(use, Held())
        held.window.add(score, self._now_s())
        self.num_scored[use, is_shadow] += 1
        self._make(held)
        figure = held.figure
        self._act()
        return figure

    def shadow_of(self, student: ServedStudent, task: Task) -> PathUse | None:
        """A path that routing does not take for a task and that needs scores, the one with the fewest; None: none."""
        config = self.config
        if config.mode != "act":
            return None
        wanted = [use for use in uses_of(student, task) if self._needs_shadow(use, config)]
        return min(wanted, key=lambda use: len(self._held[use].window) if use in self._held else 0, default=None)

    def rows(self) -> Iterator[Row]:
        """Every path that has been scored, or is out, by student, task and path."""
        now_s, floors = self._now_s(), self.config.all_floors
        for use in sorted(self._held.keys() | self._out()):
            held = self._held.get(use, Held())
            if now_s - held.made_s > STALE_S and len(held.window):
                self._make(held)
            yield Row(use=use, figure=held.figure, floor=floors[use.task], standing=self.standing(use))

    def standing(self, use: PathUse) -> Standing:
        """Whether default routing takes a path, and who decided that."""
        if self.config.mode == "off" or self.is_reference(use):
            return Standing()
        return self._state.standing(use)

    def pin(self, pinned: Pinned, *, is_open: bool, reason: str) -> None:
        """Keep a path in default routing of a task, or out of it. `reason` is the operator's own, and may be empty.

        Raises: InvalidParameter for the full path.
        """
        if not is_open and self._full_path(pinned.student) == pinned.path:
            raise InvalidParameter("the full path cannot be pinned out: all others are compared with it", param="path")
        self._state = pin(self._state, pinned, is_open=is_open, reason=reason)
        said = f"by an operator: it stays {'in' if is_open else 'out'}{'; ' if reason else ''}{reason}"
        self._note(Change(at_s=self._now_s(), use=PathUse(*pinned, "exact"), action="pin", reason=said))
        self._tell()

    def unpin(self, pinned: Pinned) -> None:
        """Raises: NotFound; InvalidParameter for a path that the settings pin."""
        if pinned not in self._state.pins:
            if pinned in self._state.fixed:
                setting = f"online_quality.pins.{pinned.task}.{pinned.path}"
                said = f"the settings pin it: change {setting} there, or pin it the other way"
                raise InvalidParameter(said, param="path")
            raise NotFound(f"the path `{pinned.path}` of `{pinned.student}` is not pinned for {pinned.task}")
        self._state = unpin(self._state, pinned)
        self._note(Change(at_s=self._now_s(), use=PathUse(*pinned, "exact"), action="unpin", reason="by an operator"))
        self._act()

    def apply_settings(self) -> None:
        """The settings or the students have changed. What was taken out by figures is in again where they are only
        observed."""
        if self.config.mode != "act":
            self._state = replace(self._state, pasts={})
        self._fix()
        self._act()

    def forget_student(self, name: str) -> None:
        """A student that is gone."""
        self._held = {use: held for use, held in self._held.items() if use.student != name}
        self.num_scored = Counter({key: count for key, count in self.num_scored.items() if key[0].student != name})
        self._state = forget_student(self._state, name)
        self._tell()

    def is_reference(self, use: PathUse) -> bool:
        """Whether it is the full path with the exact head, which is never out."""
        return use.head == "exact" and use.path == self._full_path(use.student)

    @property
    def rules(self) -> Rules:
        config = self.config
        return Rules(
            floors=config.all_floors,
            floors_under_load=config.floors_under_load if config.mode == "act" else {},
            min_samples=config.min_samples,
            rest_s=config.rest_s,
        )

    def _fix(self) -> None:
        """Let the pins of the settings hold for the students that are there."""
        before, manifests = self._state.fixed, {one.name: one.manifest for one in self._students()}
        for problem in pin_problems(self.config, manifests):
            logger.warning("pin without effect: %s", problem)
        self._state = fix(self._state, settled_pins(self.config, manifests))
        after = self._state.fixed
        for pinned in sorted(before.keys() | after.keys()):
            if before.get(pinned) != after.get(pinned):
                self._note_fixed(pinned, after.get(pinned))

    def _note_fixed(self, pinned: Pinned, now: Pin | None) -> None:
        said = "by the settings" if now is None else f"by the settings: it stays {'in' if now.is_open else 'out'}"
        action: Action = "unpin" if now is None else "pin"
        self._note(Change(at_s=self._now_s(), use=PathUse(*pinned, "exact"), action=action, reason=said))

    def _make(self, held: Held) -> None:
        config = self.config
        held.made_s = self._now_s()
        held.figure = held.window.figure(held.made_s, config.half_life_s, config.half_life_samples)

    def _figures(self) -> dict[PathUse, Figure]:
        return {
            use: held.figure
            for use, held in self._held.items()
            if held.figure is not None and not self.is_reference(use)
        }

    def _act(self) -> None:
        if self.config.mode == "act":
            self._state, changes = decide(self._state, self._figures(), self.rules, self._now_s())
            for change in changes:
                self._note(change)
                if change.action == "take_out":  # what is scored from now on shows whether it has recovered
                    self._held[change.use] = Held()
        self._tell()

    def _tell(self) -> None:
        mode = self.config.mode
        figures = self._figures() if mode == "act" else {}
        self._live = NOTHING_KNOWN if mode == "off" else live_quality(self._state, figures, self.rules)
        self._adapt(self._live)

    def _note(self, change: Change) -> None:
        use = change.use
        self.changes.append(DatedChange(at=time.time(), change=change))
        self.num_changes[change.action] += 1
        logger.warning(
            "path %s student=%s task=%s path=%s head=%s reason=%s",
            change.action,
            use.student,
            use.task,
            use.path,
            use.head,
            change.reason,
        )

    def _needs_shadow(self, use: PathUse, config: OnlineQualityConfig) -> bool:
        if self._state.pin_of(use) is not None:
            return False
        if self._state.is_out(use):
            return True
        held = self._held.get(use)
        is_known = held is not None and held.figure is not None and len(held.window) >= config.min_samples
        return use.task in config.floors_under_load and not is_known

    def _out(self) -> set[PathUse]:
        """What default routing does not take, of paths that there are."""
        served = (use for student in self._students() for task in TASKS for use in uses_of(student, task))
        return set(self._live.out.intersection(served))

    def _full_path(self, student: str) -> str | None:
        found = (one.manifest.full_path.name for one in self._students() if one.name == student)
        return next(found, None)


def uses_of(student: ServedStudent, task: Task) -> Iterator[PathUse]:
    """A student's paths with the heads that serve, but for the full path with the exact head."""
    full, head = student.manifest.full_path.name, student.fixed.head
    for path in student.manifest.paths:
        if head == "cheap":
            yield PathUse(student.name, task, path.name, "cheap")
        if path.name != full:
            yield PathUse(student.name, task, path.name, "exact")
