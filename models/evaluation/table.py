"""The records an evaluation writes, their JSON, and their place in the manifest."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from models.errors import ConfigError
from models.file_writing import write_whole
from models.student.manifest import Manifest, Quality, Record, Retention, read_manifest, write_manifest

LIKELIHOOD: Final = "likelihood"
CHOICE: Final = "choice"
INFORMATION: Final = "information"
FORMAT_VERSION = 2
"""Since 2 the ratio of a choice compares what is above chance, and short answers count by information."""


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


class Point(Record, frozen=True, kw_only=True):
    """One path at one precision.

    `retention` is against the full path at the same precision, which is what routing needs; `reference_retention`,
    `agreement`, `kl` and `perplexity_ratio` are against the full path at the reference precision, so that what
    quantisation costs shows in them. `decode_tokens_per_s` maps the rows of a step to tokens per second.
    """

    path: str
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

    @property
    def least_kept(self) -> float:
        """The lowest score of any task, against the reference."""
        return min((kept.score for kept in self.reference_retention.values()), default=0.0)

    @property
    def mean_kept(self) -> float:
        """The mean score over tasks, against the reference."""
        scores = [kept.score for kept in self.reference_retention.values()]
        return sum(scores) / len(scores) if scores else 0.0


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
    """The manifest with these figures in place of older ones of the same path, precision and task or text.

    Where a task was measured and no measure of it counts, the older figure is removed too: it came from other rows or
    rules.
    """
    quality = {(one.path, one.variant, one.text): one for one in manifest.quality}
    retention = {(one.path, one.variant, one.task): one for one in manifest.retention}
    for point in evaluation.points:
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
    return msgspec.structs.replace(manifest, quality=tuple(quality.values()), retention=tuple(retention.values()))


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
