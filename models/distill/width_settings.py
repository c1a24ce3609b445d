"""The settings of widths, the table `[widths]` of a distillation config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.distill.steering.schedules import LearningRateSchedule
from models.student.manifest import WIDTH_BLOCK, is_plain_name

DEFAULT_SHARES = {"wide": 0.834, "medium": 0.75, "narrow": 0.667}


@dataclass(slots=True, kw_only=True, frozen=True)
class Sample:
    """One answer to every prompt, at a temperature. Another seed writes another answer."""

    temperature: float
    seed: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class LegSettings:
    """One leg of training. It ends after `max_seconds` or `max_tokens`, whichever comes first, or with its text.

    `draws` says how often each width is taken, relative to the others (none given: all alike). `batch_tokens` bounds
    a step, padding included. `frequent_tokens` and `head_tokens` random others are the part of the vocabulary that the
    loss sees beside a step's own tokens.
    """

    max_seconds: float = 6000.0
    max_tokens: int = 10_000_000
    draws: Mapping[str, float] = field(default_factory=dict)
    batch_tokens: int = 2048
    prompt_weight: float = 0.4
    frequent_tokens: int = 3000
    head_tokens: int = 1500
    learning_rate: LearningRateSchedule = field(
        default_factory=lambda: LearningRateSchedule(peak=4e-4, warmup_share=0.03, floor_share=0.03)
    )
    clip_norm: float = 1.0
    checkpoint_s: float = 300.0
    log_steps: int = 10
    seed: int = 0

    def problems(self, widths: Sequence[str]) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        positive = ("max_seconds", "max_tokens", "batch_tokens", "clip_norm", "checkpoint_s", "log_steps")
        found = [f"{name} must be above 0, not {getattr(self, name)}" for name in positive if getattr(self, name) <= 0]
        found += [
            f"{name} must not be negative" for name in ("frequent_tokens", "head_tokens") if getattr(self, name) < 0
        ]
        found += [f"draws: there is no width {name!r}" for name in sorted(set(self.draws) - set(widths))]
        if self.draws and not sum(self.draws.values()) > 0:
            found.append("draws must give some width more than 0")
        if not 0 <= self.prompt_weight <= 1:
            found.append(f"prompt_weight must be from 0 to 1, not {self.prompt_weight}")
        return found + self.learning_rate.problems()


@dataclass(slots=True, kw_only=True, frozen=True)
class WidthSettings:
    """`shares`: of all layers' neurons together, what each width keeps; how many each layer keeps is measured, but at
    least `least_share` of its own.

    `samples`: how the teacher answers every prompt that has no answer. `plain`: files of plain text, which make up at
    most `plain_share` of the tokens. `calibration_tokens` are read once before training, `measured_tokens` of them
    once more for each layer. `trains_output`: whether attention's output matrix is trained too. `start`: a widths file
    to go on from, whose widths are kept as they are. `rank` and `output_rank`: of what a narrower width and attention
    differ by in the file, which is stored compactly (0: as large as it takes).
    """

    shares: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SHARES))
    least_share: float = 0.375
    samples: tuple[Sample, ...] = (Sample(temperature=0.7), Sample(temperature=1.0, seed=1))
    plain: tuple[str, ...] = ()
    plain_share: float = 0.35
    calibration_tokens: int = 240_000
    measured_tokens: int = 6_000
    trains_output: bool = True
    start: str | None = None
    rank: int = 64
    output_rank: int = 32
    leg: LegSettings = field(default_factory=LegSettings)

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if self.shares or self.start else ["widths.shares names no width"]
        found += [
            f"widths.shares.{name} must be above {self.least_share} and below 1, not {share}"
            for name, share in self.shares.items()
            if not self.least_share < share < 1
        ]
        found += [f"a width cannot be called {name!r}" for name in self.shares if not is_plain_name(name)]
        if len(set(self.shares.values())) < len(self.shares):
            found.append("widths.shares: two widths keep the same share")
        if not 0 <= self.plain_share < 1:
            found.append(f"widths.plain_share must be from 0 to below 1, not {self.plain_share}")
        positive = ("calibration_tokens", "measured_tokens")
        found += [f"widths.{name} must be above 0" for name in positive if getattr(self, name) < 1]
        found += [f"widths.{name} must not be negative" for name in ("rank", "output_rank") if getattr(self, name) < 0]
        if not self.samples:
            found.append("widths.samples: give at least one, such as { temperature = 0.7 }")
        if not self.start:
            found += [f"widths.leg: {problem}" for problem in self.leg.problems(tuple(self.shares))]
        return found

    def total_neurons(self, share: float, num_layers: int, size: int) -> int:
        """Of all layers together, in whole blocks."""
        return max(1, round(share * num_layers * size / WIDTH_BLOCK)) * WIDTH_BLOCK
