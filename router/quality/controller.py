"""Which paths leave default routing, and which come back: a pure function of what is known, and what it changes.

A path leaves a task when the whole interval of what it keeps lies below the task's floor, and comes back when the whole
interval of new scores lies above it; what lies between changes nothing. New scores are of answers that nobody sees
(docs/online-quality.md), since a path that is out has no others. Each time it is taken out again it stays out twice as
long, so that a path at its floor does not come and go.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from router.quality.live import LiveQuality, PathUse
from router.quality.window import Figure
from router.tasks import Task

MOST_REST_S = 6 * 3600.0
FORGIVEN_S = 24 * 3600.0
"""A path that was not taken out for this long has no past."""

Action = Literal["take_out", "put_back", "pin", "unpin"]
Decider = Literal["controller", "operator", "settings"]
"""Who said last whether default routing takes a path."""


class Pinned(NamedTuple):
    """A path of a student on a task, with every head."""

    student: str
    task: Task
    path: str


@dataclass(slots=True, kw_only=True, frozen=True)
class Pin:
    """Whether a path is in default routing, whatever its figures say; who said so, and in which words."""

    is_open: bool
    by: Decider = "operator"
    reason: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class Past:
    """Of one path: whether it is out, since when it is what it is, how often it was taken out lately, and why it is out
    or in again."""

    is_out: bool
    since_s: float
    num_out: int
    reason: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class Standing:
    """Whether default routing takes a path, who decided that, and why. `by` None: nobody yet."""

    is_open: bool = True
    by: Decider | None = None
    reason: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class State:
    """`pins` are the operator's. They win over `fixed`, the settings', and both over what figures have done."""

    pasts: Mapping[PathUse, Past] = field(default_factory=dict)
    pins: Mapping[Pinned, Pin] = field(default_factory=dict)
    fixed: Mapping[Pinned, Pin] = field(default_factory=dict)

    @property
    def all_pins(self) -> Mapping[Pinned, Pin]:
        return {**self.fixed, **self.pins}

    def pin_of(self, use: PathUse) -> Pin | None:
        pinned = Pinned(use.student, use.task, use.path)
        return self.pins.get(pinned, self.fixed.get(pinned))

    def standing(self, use: PathUse) -> Standing:
        """What holds for a path with a head: a pin, else what its figures have done, or those that it has with the
        cheap head: a path that leaves with that one leaves with the exact one too."""
        pin = self.pin_of(use)
        if pin is not None:
            return Standing(is_open=pin.is_open, by=pin.by, reason=pin.reason)
        pasts = [self.pasts.get(one) for one in (use, use._replace(head="cheap"))]
        past = next((one for one in pasts if one is not None and one.is_out), pasts[0])
        if past is None:
            return Standing()
        return Standing(is_open=not past.is_out, by="controller", reason=past.reason)

    def is_out(self, use: PathUse) -> bool:
        """Whether a pin or its own figures have taken it out."""
        pin, past = self.pin_of(use), self.pasts.get(use)
        if pin is not None:
            return not pin.is_open
        return past is not None and past.is_out


@dataclass(slots=True, kw_only=True, frozen=True)
class Rules:
    """What the settings say. Units: shares of the full path's quality, samples by weight, seconds."""

    floors: Mapping[Task, float]
    floors_under_load: Mapping[Task, float] = field(default_factory=dict)
    min_samples: float = 30.0
    rest_s: float = 600.0


@dataclass(slots=True, kw_only=True, frozen=True)
class Change:
    """`at_s` is on the clock of whoever decided."""

    at_s: float
    use: PathUse
    action: Action
    reason: str


def decide(
    state: State, figures: Mapping[PathUse, Figure], rules: Rules, now_s: float
) -> tuple[State, tuple[Change, ...]]:
    """What follows from the figures. Those of a path that is out are of scores since it was taken out."""
    changes = tuple(_changes(state, figures, rules, now_s))
    pasts = dict(state.pasts)
    for change in changes:
        pasts[change.use] = _past_after(pasts.get(change.use), change)
    return replace(state, pasts=pasts), changes


def pin(state: State, pinned: Pinned, *, is_open: bool, reason: str = "") -> State:
    """From now on the path is in default routing, or not, whatever its figures say."""
    return replace(state, pins={**state.pins, pinned: Pin(is_open=is_open, reason=reason)})


def unpin(state: State, pinned: Pinned) -> State:
    """The figures decide again; a path that a pin kept in or out begins as it would be without any past."""
    pins = {one: pin for one, pin in state.pins.items() if one != pinned}
    return replace(state, pins=pins, pasts=_without(state.pasts, {pinned}))


def fix(state: State, fixed: Mapping[Pinned, Pin]) -> State:
    """The settings pin these paths and no others; one that they let go begins without any past."""
    gone = state.fixed.keys() - fixed.keys()
    return replace(state, fixed=fixed, pasts=_without(state.pasts, gone))


def forget_student(state: State, student: str) -> State:
    """A student that is gone; a later one of that name begins anew."""
    return State(
        pasts={use: past for use, past in state.pasts.items() if use.student != student},
        pins={pinned: pin for pinned, pin in state.pins.items() if pinned.student != student},
        fixed={pinned: pin for pinned, pin in state.fixed.items() if pinned.student != student},
    )


def live_quality(state: State, figures: Mapping[PathUse, Figure], rules: Rules) -> LiveQuality:
    """What routing is told."""
    out = {use for use in state.pasts if state.is_out(use)}
    pinned_out = {pinned for pinned, pin in state.all_pins.items() if not pin.is_open}
    return LiveQuality(
        # What is wrong with a path is seldom its cheap head: with the exact one it would be taken next.
        out=frozenset({*out, *(use._replace(head="exact") for use in out)})
        | frozenset(PathUse(*pinned, head) for pinned in pinned_out for head in ("exact", "cheap")),
        enough_under_load=frozenset(
            use
            for use, figure in figures.items()
            if use.task in rules.floors_under_load
            and is_known(figure, rules)
            and figure.low >= rules.floors_under_load[use.task]
            and Pinned(use.student, use.task, use.path) not in pinned_out
        ),
    )


def is_known(figure: Figure, rules: Rules) -> bool:
    """Whether there are enough scores for anything to follow."""
    return figure.effective_samples >= rules.min_samples


def rest_s(past: Past, rules: Rules) -> float:
    """How long a path that is out stays out at least."""
    return float(min(rules.rest_s * 2 ** (past.num_out - 1), max(MOST_REST_S, rules.rest_s)))


def _changes(state: State, figures: Mapping[PathUse, Figure], rules: Rules, now_s: float) -> Iterator[Change]:
    for use, figure in figures.items():
        if state.pin_of(use) is not None or not is_known(figure, rules):
            continue
        floor, past = rules.floors[use.task], state.pasts.get(use)
        said = _described(figure)
        if past is None or not past.is_out:
            if figure.high < floor:
                yield Change(at_s=now_s, use=use, action="take_out", reason=f"{said}, below the floor of {floor:g}")
        elif figure.low >= floor and now_s - past.since_s >= rest_s(past, rules):
            yield Change(at_s=now_s, use=use, action="put_back", reason=f"{said}, above the floor of {floor:g}")


def _described(figure: Figure) -> str:
    interval = f"[{figure.low:.3f}, {figure.high:.3f}]"
    return f"it keeps {figure.kept:.3f} {interval} by {figure.effective_samples:.0f} samples"


def _past_after(past: Past | None, change: Change) -> Past:
    num_out = 0 if past is None else past.num_out
    if change.action == "put_back":
        return Past(is_out=False, since_s=change.at_s, num_out=num_out, reason=change.reason)
    is_forgiven = past is not None and change.at_s - past.since_s >= FORGIVEN_S
    num_out = 1 if is_forgiven else num_out + 1
    return Past(is_out=True, since_s=change.at_s, num_out=num_out, reason=change.reason)


def _without(pasts: Mapping[PathUse, Past], gone: Set[Pinned]) -> dict[PathUse, Past]:
    return {use: past for use, past in pasts.items() if Pinned(use.student, use.task, use.path) not in gone}
