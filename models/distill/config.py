"""The settings of a distillation run: read from TOML and checked as a whole. The defaults are what won the ablation.

Three lines are enough: `teacher`, `data` and `out`. docs/distillation.md explains every setting.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from models.distill.data.labels import LabelSettings
from models.distill.data.preparation import DataSettings
from models.distill.data.prompt_writing import PromptSettings
from models.distill.loss.adversarial import AdversarialSettings
from models.distill.loss.mining import MiningSettings
from models.distill.network.quantised import QuantisedSettings
from models.distill.steering.adaptive_weights import Weighting
from models.distill.steering.schedules import (
    LOSS_NAMES,
    SOFT_TARGETS_ONLY,
    AlignmentGrowth,
    DataMix,
    LearningRateSchedule,
    Stage,
    TemperatureSchedule,
    stage_problems,
)
from models.distill.steering.transfer_control import TransferConfig
from models.distill.steering.weighting import GradientGuideConfig, WeightAverageConfig
from models.distill.teacher.switch import TeacherSwitchConfig
from models.distill.width_settings import LegSettings, Sample, WidthSettings
from models.distill.work_folder import WorkFolder
from models.errors import ConfigError
from models.graphs.precisions import PRECISIONS
from models.student.cut import FULL_PATH
from models.student.manifest import is_plain_name

AUTO = "auto"
Ensemble = Literal["switch", "mean"]


@dataclass(slots=True, kw_only=True, frozen=True)
class ExitConfig:
    """An exit to train behind module `after`. `copied_from` are the layers its blocks begin as (None: the last one).

    `tasks` it is trained on (none: all), by the weights in `losses` where there are any, else by the stage's. Its path
    runs all modules up to `after` and is called `path` (None: like the module).
    """

    after: str
    name: str | None = None
    path: str | None = None
    copied_from: tuple[int, ...] | None = None
    has_map: bool = True
    tasks: tuple[str, ...] = ()
    losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def path_name(self) -> str:
        return self.path or self.after

    @property
    def exit_name(self) -> str:
        return self.name or f"{self.path_name}_exit"

    def can_learn_by(self, loss: str) -> bool:
        """Whether the loss depends on anything that is trained in this exit."""
        if loss == "attention_transfer":
            return self.copied_from != ()
        return loss != "module_alignment" or self.has_map


@dataclass(slots=True, kw_only=True, frozen=True)
class TrainingSettings:
    """How long a run trains, and in what steps.

    `batch_tokens` bounds a pass, padding included; `accumulate` passes make one step. `head_tokens` random ids join a
    batch's likely ones in the subset of the vocabulary that the loss sees; None: the whole vocabulary. `prompt_weight`
    is how much a prompt's token counts where an answer's counts 1. `teacher_top_k` likeliest tokens are cached per
    position.
    """

    epochs: float = 4.0
    batch_tokens: int = 2048
    accumulate: int = 1
    head_tokens: int | None = 4096
    prompt_weight: float = 0.3
    teacher_top_k: int = 32
    soft_targets: Literal["exact", "top_k"] = "exact"
    switch_steps: int = 20
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    checkpoint_s: float = 120.0
    log_steps: int = 20
    divergence_factor: float = 3.0

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        positive = ("epochs", "batch_tokens", "accumulate", "teacher_top_k", "clip_norm", "checkpoint_s", "log_steps")
        found = [
            f"training.{name} must be above 0, not {getattr(self, name)}"
            for name in positive
            if not getattr(self, name) > 0
        ]
        if self.switch_steps < 1:
            found.append(f"training.switch_steps must be at least 1, not {self.switch_steps}")
        if self.head_tokens is not None and self.head_tokens < 0:
            found.append(f"training.head_tokens must not be negative, not {self.head_tokens}")
        if not 0 <= self.prompt_weight <= 1:
            found.append(f"training.prompt_weight must be from 0 to 1, not {self.prompt_weight}")
        if self.divergence_factor <= 1:
            found.append(f"training.divergence_factor must be above 1, not {self.divergence_factor}")
        return found


@dataclass(slots=True, kw_only=True, frozen=True)
class BranchSettings:
    """After the run, exits that learned all tasks go on for `epochs` once per task, and the branches are merged."""

    epochs: float = 0.5
    learning_rate_share: float = 0.3
    merge: Literal["importance", "average"] = "importance"

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        return [
            f"branches.{name} must be above 0, not {getattr(self, name)}"
            for name in ("epochs", "learning_rate_share")
            if not getattr(self, name) > 0
        ]


@dataclass(slots=True, kw_only=True, frozen=True)
class DistillConfig:
    """One run. Absent tables (`mix`, `mining`, `quantised`, ...) mean: not used.

    `teacher` is a GGUF file, a Hugging Face folder, or a name `fenhe pull` knows; the student's frozen trunk is the
    teacher's own. `teachers` are further ones with the same vocabulary, whose soft targets are switched between or
    averaged (`ensemble`). `transfer = "sequence"` trains on the teachers' text alone, for other vocabularies. With
    `widths` the run makes narrow paths, and no exits.
    """

    teacher: str
    data: str | tuple[str, ...]
    out: str
    name: str | None = None
    task: str | None = None
    seed: int = 0
    modules: str = AUTO
    exits: tuple[ExitConfig, ...] = ()
    teachers: tuple[str, ...] = ()
    ensemble: Ensemble = "switch"
    transfer: Literal["logits", "sequence"] = "logits"
    precisions: tuple[str, ...] = ()
    device: str = AUTO
    work: str | None = None
    text: DataSettings = field(default_factory=DataSettings)
    prompts: PromptSettings | None = None
    labels: LabelSettings = field(default_factory=LabelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    learning_rate: LearningRateSchedule = field(default_factory=lambda: LearningRateSchedule(peak=1e-3))
    temperature: TemperatureSchedule = field(default_factory=lambda: TemperatureSchedule(start=1.0, end=1.0))
    stages: tuple[Stage, ...] = SOFT_TARGETS_ONLY
    weighting: Weighting = "fixed"
    dynamic_average: WeightAverageConfig = field(default_factory=WeightAverageConfig)
    gradient_guided: GradientGuideConfig = field(default_factory=GradientGuideConfig)
    controller: TransferConfig = field(default_factory=TransferConfig)
    switch: TeacherSwitchConfig = field(default_factory=TeacherSwitchConfig)
    mix: DataMix | None = None
    mining: MiningSettings | None = None
    alignment: AlignmentGrowth | None = None
    quantised: QuantisedSettings | None = None
    adversarial: AdversarialSettings | None = None
    branches: BranchSettings | None = None
    widths: WidthSettings | None = None

    @property
    def data_settings(self) -> DataSettings:
        """`text` with the files of `data` and with `task`, which are top-level settings."""
        files = (self.data,) if isinstance(self.data, str) else tuple(self.data)
        return replace(self.text, files=files, task=self.task)

    @property
    def work_folder(self) -> WorkFolder:
        """Where the run keeps its files: `work`, else beside the student."""
        return WorkFolder(path=Path(self.work or f"{self.out}.work"))

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = self.data_settings.problems() + stage_problems(self.stages)
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name != "text" and is_dataclass(value) and hasattr(value, "problems"):
                found += value.problems()
        found += [f"a path cannot be called {name!r}" for name in self._path_names() if not is_plain_name(name)]
        found += [
            f"precisions: {name!r} is none of {', '.join(PRECISIONS)}"
            for name in self.precisions
            if name not in PRECISIONS
        ]
        found += [
            f"exit {exit.exit_name!r}: {loss!r} is not a loss; there are {', '.join(LOSS_NAMES)}"
            for exit in self.exits
            for loss in exit.losses
            if loss not in LOSS_NAMES
        ]
        found += self._exit_problems()
        if self.widths is not None and self.exits:
            found.append(
                "widths and exits are trained in runs of their own; give one of them here, and build with both files "
                "(`fenhe build --exits FILE --widths FILE`)"
            )
        if self.branches is not None and self.exits and all(exit.tasks for exit in self.exits):
            found.append("branches need an exit that learns all tasks; every exit has `tasks`")
        names = [exit.exit_name for exit in self.exits]
        found += [
            f"two exits are called {name!r}" for name in sorted({name for name in names if names.count(name) > 1})
        ]
        return found + self._loss_problems() + self._teacher_problems()

    def _loss_problems(self) -> list[str]:
        """Losses that contradict a setting, or that would leave an exit without a gradient."""
        used = _named_weights(self.stages)
        used += [(f"exit {exit.exit_name!r}", exit.losses) for exit in self.exits if exit.losses]
        found = []
        for where, weights in used:
            positive = {loss for loss, weight in weights.items() if weight > 0}
            if self.training.soft_targets == "top_k" and (others := sorted(positive & _NOT_BY_TOP_K)):
                found.append(f'{where}: training.soft_targets = "top_k" cannot give {", ".join(others)}; use "exact"')
            if self.transfer == "sequence" and (others := sorted(positive - {"task_cross_entropy"})):
                found.append(
                    f'{where}: transfer = "sequence" has no soft targets and so no {", ".join(others)}; '
                    "give weight to task_cross_entropy alone"
                )
        return found + [problem for exit in self.exits for problem in self._gradient_problems(exit)]

    def _gradient_problems(self, exit: ExitConfig) -> list[str]:
        """Losses that leave the exit without a gradient: torch would raise in the middle of the run."""
        found = []
        for where, weights in [("losses", exit.losses)] if exit.losses else _named_weights(self.stages):
            positive = {loss for loss, weight in weights.items() if weight > 0}
            without = {loss for loss in positive if not exit.can_learn_by(loss)}
            if not positive:
                found.append(f"exit {exit.exit_name!r}: {where} must give some loss more than 0")
            elif positive == without or (exit.losses and without):
                found.append(
                    f"exit {exit.exit_name!r}: it learns nothing by {', '.join(sorted(without))} of its {where}: "
                    "attention_transfer needs a block, module_alignment a map"
                )
        return found

    def _teacher_problems(self) -> list[str]:
        if self.transfer == "sequence" and len(self.teachers) != 1:
            return [
                f'transfer = "sequence" trains on what one other teacher writes: name it in `teachers`, '
                f"which names {len(self.teachers) or 'none'}"
            ]
        if self.training.soft_targets == "top_k" and self.teachers and self.transfer != "sequence":
            return ['training.soft_targets = "top_k" is for one teacher; use "exact" with `teachers`']
        return []

    def _exit_problems(self) -> list[str]:
        found = [
            f"exit {exit.exit_name!r} has neither a map nor blocks: nothing to train"
            for exit in self.exits
            if not exit.has_map and exit.copied_from == ()
        ]
        found += [
            f"exit {exit.exit_name!r}: losses.{loss} must not be negative, not {weight}"
            for exit in self.exits
            for loss, weight in exit.losses.items()
            if weight < 0
        ]
        paths = [FULL_PATH, *self._path_names()]
        return found + [f"two paths are called {name!r}" for name in sorted({n for n in paths if paths.count(n) > 1})]

    def _path_names(self) -> list[str]:
        return [exit.path_name for exit in self.exits]


_NOT_BY_TOP_K = {"reverse_kl", "jensen_shannon"}


def _named_weights(stages: Sequence[Stage]) -> list[tuple[str, Mapping[str, float]]]:
    return [(f"stage {stage.name!r}", stage.weights) for stage in stages]


def read_config(file: Path) -> DistillConfig:
    """Raises: ConfigError with every problem, and the file it is in."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist; three lines do: teacher, data, out") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return config_from(values, str(file))


def config_from(values: dict[str, Any], where: str) -> DistillConfig:
    """Raises: ConfigError with every problem, and `where` it comes from."""
    _refuse_unknown(values, DistillConfig, where, "")
    try:
        config = msgspec.convert(values, type=DistillConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    if problems := config.problems():
        raise ConfigError(f"{where}: " + "; ".join(problems))
    return config


def _refuse_unknown(values: dict[str, Any], kind: type, where: str, prefix: str) -> None:
    """msgspec ignores keys that a dataclass does not have; here they are errors."""
    assert is_dataclass(kind)
    known = {entry.name: entry for entry in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: there is no setting {prefix}{key}; there are {', '.join(sorted(known))}")
        inner = _TABLES.get(key) if kind is DistillConfig else _INNER_TABLES.get(f"{prefix}{key}")
        for table in value if isinstance(value, list) else [value]:
            if inner is not None and isinstance(table, dict):
                _refuse_unknown(table, inner, where, f"{prefix}{key}.")


_TABLES: dict[str, type] = {
    "exits": ExitConfig,
    "text": DataSettings,
    "prompts": PromptSettings,
    "labels": LabelSettings,
    "training": TrainingSettings,
    "learning_rate": LearningRateSchedule,
    "temperature": TemperatureSchedule,
    "stages": Stage,
    "dynamic_average": WeightAverageConfig,
    "gradient_guided": GradientGuideConfig,
    "controller": TransferConfig,
    "switch": TeacherSwitchConfig,
    "mix": DataMix,
    "mining": MiningSettings,
    "alignment": AlignmentGrowth,
    "quantised": QuantisedSettings,
    "adversarial": AdversarialSettings,
    "branches": BranchSettings,
    "widths": WidthSettings,
}
_INNER_TABLES: dict[str, type] = {
    "widths.samples": Sample,
    "widths.leg": LegSettings,
    "widths.leg.learning_rate": LearningRateSchedule,
}
