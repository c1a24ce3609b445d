"""What changes over a training run, as pure functions of its progress: 0 at the start, 1 at the end.

Configs are frozen and list their own problems. Nothing here looks at losses or at a model's weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import cos, isclose, pi
from typing import Literal

LOSS_NAMES = (
    "soft_target_kl",
    "reverse_kl",
    "jensen_shannon",
    "task_cross_entropy",
    "hidden_mse",
    "hidden_cosine",
    "attention_transfer",
    "module_alignment",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRateSchedule:
    """Linear warm-up to `peak`, then a cosine down to `floor_share` of it. Shares are of the run and of the peak."""

    peak: float = 5e-4
    warmup_share: float = 0.01
    floor_share: float = 0.1

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if self.peak > 0 else [f"peak must be above 0, not {self.peak}"]
        if not 0 <= self.warmup_share < 1:
            found.append(f"warmup_share must be from 0 to below 1, not {self.warmup_share}")
        return found + _share_problems(floor_share=self.floor_share)


def learning_rate_at(schedule: LearningRateSchedule, progress: float) -> float:
    """Source: SGDR, arXiv 1608.03983, section 3 (one period).

    Progress 0 gives a rate of 0, so pass the share of the run that will be done after the step.
    """
    if progress < schedule.warmup_share:
        return schedule.peak * progress / schedule.warmup_share
    floor = schedule.peak * schedule.floor_share
    return _between(schedule.peak, floor, _cosine((progress - schedule.warmup_share) / (1 - schedule.warmup_share)))


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureSchedule:
    """From soft targets, which show how the teacher ranks unlikely tokens, to sharp ones."""

    start: float = 2.0
    end: float = 0.5
    shape: Literal["linear", "cosine"] = "linear"

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        ends = {"start": self.start, "end": self.end}
        found = [f"{name} must be above 0, not {value}" for name, value in ends.items() if not value > 0]
        if self.shape not in {"linear", "cosine"}:
            found.append(f"shape must be linear or cosine, not {self.shape!r}")
        return found


def temperature_at(schedule: TemperatureSchedule, progress: float) -> float:
    return _between(schedule.start, schedule.end, _cosine(progress) if schedule.shape == "cosine" else progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of the run with losses of its own. `temperature` None: by the run's `TemperatureSchedule`."""

    name: str
    share: float
    weights: Mapping[str, float]
    temperature: float | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if 0 < self.share <= 1 else [f"share must be above 0 and at most 1, not {self.share}"]
        found += [
            f"weights.{loss} is not a loss: name one of {', '.join(LOSS_NAMES)}"
            for loss in self.weights
            if loss not in LOSS_NAMES
        ]
        found += [f"weights.{loss} must not be negative, not {w}" for loss, w in self.weights.items() if not w >= 0]
        if not any(weight > 0 for weight in self.weights.values()):
            found.append("weights must give some loss more than 0")
        if self.temperature is not None and not self.temperature > 0:
            found.append(f"temperature must be above 0, not {self.temperature}")
        return [f"stage {self.name!r}: {problem}" for problem in found]


DISTILL_TO_TASK = {"soft_target_kl": 0.75, "task_cross_entropy": 0.25}

SOFT_TARGETS_ONLY = (Stage(name="soft_targets", share=1.0, weights=DISTILL_TO_TASK),)

PROGRESSIVE = (
    Stage(name="features", share=0.4, weights={"hidden_mse": 1.0, "hidden_cosine": 1.0}),
    Stage(name="attention", share=0.2, weights={"attention_transfer": 0.5, "hidden_mse": 0.5}),
    Stage(name="soft_targets", share=0.4, weights={"soft_target_kl": 0.8, "task_cross_entropy": 0.2}, temperature=3.0),
)


def stage_problems(stages: Sequence[Stage]) -> list[str]:
    """Everything wrong with the stages, each and together, as sentences; empty when they are sound."""
    found = [problem for stage in stages for problem in stage.problems()]
    names = [stage.name for stage in stages]
    found += [f"the stage name {name!r} is used twice" for name in sorted({n for n in names if names.count(n) > 1})]
    total = sum(stage.share for stage in stages)
    if not isclose(total, 1, abs_tol=1e-6):
        found.append(f"the shares of the stages must add up to 1, not {total:g}")
    return found


def stage_at(stages: Sequence[Stage], progress: float) -> tuple[Stage, float]:
    """The stage that the run is in, and the progress within it; a stage begins where the last one ends."""
    for stage, first, end in _spans(stages):
        if progress < end:
            return stage, (progress - first) / stage.share
    return stages[-1], 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataMix:
    """General text alone for `general_stage`, then task text joins over `ramp` until it is `task_share` of all.

    `general_stage` and `ramp` are shares of the run; `task_share` 0.7 is 7 parts of task to 3 of general text.
    """

    general_stage: float = 0.3
    ramp: float = 0.1
    task_share: float = 0.7

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = _share_problems(general_stage=self.general_stage, ramp=self.ramp, task_share=self.task_share)
        if self.general_stage + self.ramp > 1:
            found.append(f"general_stage and ramp must fit into the run, not take {self.general_stage + self.ramp:g}")
        return found


def task_share_at(mix: DataMix, progress: float) -> float:
    """The share of task text among the sequences drawn now."""
    if progress < mix.general_stage:
        return 0.0
    done = 1.0 if mix.ramp == 0 else min(1.0, (progress - mix.general_stage) / mix.ramp)
    return mix.task_share * done


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentGrowth:
    """Links between modules are strengthened one after the other until all have `weight`, at `grown_at` of the run."""

    weight: float = 0.1
    grown_at: float = 0.5

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if self.weight >= 0 else [f"weight must not be negative, not {self.weight}"]
        if not 0 < self.grown_at <= 1:
            found.append(f"grown_at must be above 0 and at most 1, not {self.grown_at}")
        return found


def alignment_weights_at(growth: AlignmentGrowth, progress: float, link_errors: Sequence[float]) -> tuple[float, ...]:
    """The `module_alignment` weight of every link now: the weakest link, which has the largest error, grows first.

    Measure the errors once, before training: a new order during the run would take a link's weight away again.
    """
    weakest_first = sorted(range(len(link_errors)), key=lambda link: -link_errors[link])
    turn = growth.grown_at / max(1, len(link_errors))
    weights = [0.0] * len(link_errors)
    for rank, link in enumerate(weakest_first):
        weights[link] = growth.weight * min(1.0, max(0.0, progress / turn - rank))
    return tuple(weights)


def _spans(stages: Sequence[Stage]) -> Iterator[tuple[Stage, float, float]]:
    first = 0.0
    for stage in stages:
        yield stage, first, first + stage.share
        first += stage.share


def _share_problems(**shares: float) -> list[str]:
    return [f"{name} must be from 0 to 1, not {share}" for name, share in shares.items() if not 0 <= share <= 1]


def _between(start: float, end: float, way: float) -> float:
    return start + (end - start) * way


def _cosine(progress: float) -> float:
    """From 0 to 1, slow at both ends."""
    return (1 - cos(pi * progress)) / 2
