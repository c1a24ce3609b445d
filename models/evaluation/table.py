"""The records an evaluation writes, their JSON, and their place in the manifest."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from models.errors import ConfigError
from models.file_writing import write_whole
from models.student.manifest import (
    HeadKind,
    Manifest,
    Measured,
    PathFigures,
    Quality,
    Record,
    Retention,
    Verdict,
    read_manifest,
    write_manifest,
)

LIKELIHOOD: Final = "likelihood"
CHOICE: Final = "choice"
INFORMATION: Final = "information"
FORMAT_VERSION = 3
"""Since 2 the ratio of a choice compares what is above chance, and short answers count by information. Since 3 a point
is a path with one head, and has figures and verdicts for every task."""
LANGUAGE: Final = "en"
"""Of all texts that a path is measured on."""


class Measure(Record, frozen=True, kw_only=True):
    """One figure of a path beside the full path's at the same precision, on the same rows.

    A `likelihood` is nats per token of the answer (less is better), a `choice` an accuracy, `information` the nats per
    token that the question takes off the answer. `ratio` is 1.0 where both are equal and falls with the path; for a
    choice it is that of what lies above `chance`. `full_low` to `full_high` is the interval of `full_value`, where it
    has a chance. `reason` says why the measure counts towards the task's retention, or why it does not.
    """

    name: str
    task: str
    kind: Literal["likelihood", "choice", "information"]
    value: float
    full_value: float
    ratio: float
    low: float
    high: float
    n: int
    num_tokens: int | None = None
    chance: float | None = None
    full_low: float | None = None
    full_high: float | None = None
    is_above_chance: bool = True
    is_counted: bool = True
    reason: str = ""


class TaskRetention(Record, frozen=True, kw_only=True):
    """What a path keeps of a task, with its 95 % interval: the mean of `measures`, each counted as 0 to 1.

    `reason` says why these measures count.
    """

    task: str
    score: float
    low: float
    high: float
    measures: tuple[str, ...]
    reason: str = ""


class TaskFigures(Record, frozen=True, kw_only=True):
    """A path on the reference answers of one task, beside the full path at the reference precision."""

    agreement: float
    kl: float
    perplexity_ratio: float
    num_tokens: int


class JudgedFigures(Record, frozen=True, kw_only=True):
    """What a path keeps of one task beside the full path with the exact head at the same precision, and what that
    amounts to. The figures are those of `PathFigures`."""

    verdict_fidelity: Verdict
    verdict_field: Verdict
    gate: Verdict
    perplexity_ratio_own: float | None
    perplexity_ratio_human: float | None
    perplexity_ratio_plain: float | None
    information_kept: float | None
    choice_kept: float | None
    accuracy_kept: float | None
    blimp_kept: float | None
    rescored_nats_ratio: float | None
    repetition_ratio: float | None
    kl: float | None
    agreement: float | None
    rows: dict[str, int]
    intervals: dict[str, tuple[float, float]]


class RequestCompute(Record, frozen=True, kw_only=True):
    """The share of the full path's multiply-adds that a request of so many tokens takes, attention left out.

    The tokens are the means of the full path's own words.
    """

    num_prompt_tokens: int
    num_answer_tokens: int
    compute_share: float


class Point(Record, frozen=True, kw_only=True):
    """One path with one head at one precision. `compute_share` is that of an answer token.

    `retention` is against the full path at the same precision, which is what routing needs; `reference_retention`,
    `agreement`, `kl` and `perplexity_ratio` are against the full path at the reference precision, so that what
    quantisation costs shows in them. `decode_tokens_per_s` maps the rows of a step to tokens per second.
    """

    path: str
    head: HeadKind = "exact"
    precision: str
    layers: int
    compute_share: float
    compute_share_with_attention: float
    agreement: float
    kl: float
    perplexity_ratio: float
    tasks: dict[str, TaskFigures]
    retention: dict[str, TaskRetention]
    reference_retention: dict[str, TaskRetention]
    measures: tuple[Measure, ...]
    bytes: int
    decode_tokens_per_s: dict[int, float]
    figures: dict[str, JudgedFigures] = msgspec.field(default_factory=dict)
    request_compute: dict[str, RequestCompute] = msgspec.field(default_factory=dict)
    pairs_accuracy: float | None = None
    """Of pairs of sentences, the share of which the right one is likelier."""

    @property
    def name(self) -> str:
        """The path, and its head where it is not the exact one."""
        return self.path if self.head == "exact" else f"{self.path} with the {self.head} head"

    @property
    def least_kept(self) -> float:
        """The lowest score of any task, against the reference."""
        return min((kept.score for kept in self.reference_retention.values()), default=0.0)

    @property
    def mean_kept(self) -> float:
        """The mean score over tasks, against the reference."""
        scores = [kept.score for kept in self.reference_retention.values()]
        return sum(scores) / len(scores) if scores else 0.0


class Calibration(Record, frozen=True, kw_only=True):
    """The full path at a precision that many serve at, beside the full path at the reference precision: how strict the
    figures are. Measured on a part of the texts."""

    path: str
    precision: str
    reference_precision: str
    compute_share: float
    figures: dict[str, JudgedFigures]


class Evaluation(Record, frozen=True, kw_only=True):
    """Everything `fenhe eval` found. `num_rows` counts the scored rows of every dataset, `num_skipped` the others."""

    format_version: int = FORMAT_VERSION
    student: str
    full_path: str
    reference_precision: str
    attention_context_tokens: int
    machine: str
    seed: int
    num_rows: dict[str, int]
    num_skipped: int
    points: tuple[Point, ...]
    calibration: Calibration | None = None
    mean_default_compute: float | None = None
    """Share of the full path's multiply-adds in an answer token, mean over the tasks, that an idle server spends on
    short requests that ask for nothing."""


def write_evaluation(file: Path, evaluation: Evaluation) -> None:
    write_whole(file, msgspec.json.format(msgspec.json.encode(evaluation), indent=2) + b"\n")


def read_evaluation(file: Path) -> Evaluation:
    """Raises: ConfigError that names the file and what to do."""
    try:
        evaluation = msgspec.json.decode(file.read_bytes(), type=Evaluation)
    except FileNotFoundError:
        raise ConfigError(f"{file} is not there; write it with `fenhe eval DIR --json {file}`") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} cannot be read: {error}; write it again with `fenhe eval`") from error
    if evaluation.format_version != FORMAT_VERSION:
        raise ConfigError(
            f"{file} has figures of format {evaluation.format_version}, which mean something other than those of "
            f"format {FORMAT_VERSION}; write it again with `fenhe eval`"
        )
    return evaluation


def with_evaluation(manifest: Manifest, evaluation: Evaluation) -> Manifest:
    """The manifest with these figures in place of older ones of the same path, head, precision and task or text.

    Where a task was measured and no measure of it counts, the older figure is removed too: it came from other rows or
    rules. Quality and retention are those of the exact head.
    """
    quality = {(one.path, one.variant, one.text): one for one in manifest.quality}
    retention = {(one.path, one.variant, one.task): one for one in manifest.retention}
    for point in evaluation.points:
        if point.head != "exact":
            continue
        for one in _qualities(point):
            quality[one.path, one.variant, one.text] = one
        for task in point.tasks:
            retention.pop((point.path, point.precision, task), None)
        for kept in point.retention.values():
            retention[point.path, point.precision, kept.task] = Retention(
                path=point.path,
                task=kept.task,
                variant=point.precision,
                score=kept.score,
                low=kept.low,
                high=kept.high,
            )
    return msgspec.structs.replace(
        manifest,
        quality=tuple(quality.values()),
        retention=tuple(retention.values()),
        figures=_figures(manifest, evaluation),
    )


def _figures(manifest: Manifest, evaluation: Evaluation) -> tuple[PathFigures, ...]:
    found = {_figures_key(one): one for one in manifest.figures}
    for point in evaluation.points:
        for one in path_figures(point):
            found[_figures_key(one)] = one
    return tuple(found.values())


def _figures_key(figures: PathFigures) -> tuple[str, ...]:
    return figures.path, figures.head, figures.task, figures.variant, figures.language


def path_figures(point: Point) -> list[PathFigures]:
    """A point's figures as the manifest has them."""
    return [
        msgspec.convert(
            {
                **{name: value for name, value in msgspec.structs.asdict(judged).items() if name != "gate"},
                "path": point.path,
                "head": point.head,
                "task": task,
                "variant": point.precision,
                "language": LANGUAGE,
            },
            PathFigures,
        )
        for task, judged in point.figures.items()
    ]


def measured_of(manifest: Manifest) -> Measured:
    """What was measured of a student, to be given to others that are built with the same exits, head and widths."""
    return Measured(
        exits_sha256=manifest.exits_sha256,
        cheap_head_sha256="" if manifest.cheap_head is None else manifest.cheap_head.sha256,
        widths_sha256=manifest.widths_sha256,
        quality=manifest.quality,
        retention=manifest.retention,
        figures=manifest.figures,
    )


def write_measured(file: Path, measured: Measured) -> None:
    write_whole(file, msgspec.json.format(msgspec.json.encode(measured), indent=1) + b"\n")


def _qualities(point: Point) -> list[Quality]:
    return [
        Quality(
            path=point.path,
            variant=point.precision,
            cross_entropy=measure.value,
            text=f"{measure.name.removesuffix(f'_{LIKELIHOOD}')} answers",
            num_tokens=measure.num_tokens,
        )
        for measure in point.measures
        if measure.kind == LIKELIHOOD and measure.num_tokens is not None
    ]


def store_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Put the figures into the folder's manifest as it is now, atomically."""
    write_manifest(folder, with_evaluation(read_manifest(folder), evaluation))
