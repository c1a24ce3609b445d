"""Every path and precision of a student, measured: the run behind `fenhe eval`.

At most two precisions are in memory at a time: the reference and the one that is scored.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from engines.build import build_runner
from engines.config import EngineConfig
from engines.evaluation.scorer import PathRuns, Scorer, stages_of
from engines.evaluation.speeds import NUM_ROUNDS, POSITION, ROW_COUNTS, decode_speeds
from engines.machine import describe_machine
from engines.native import library_path
from engines.onnx.runner import OnnxRunner
from models.errors import ConfigError
from models.evaluation.blind import with_other_questions
from models.evaluation.compute import ATTENTION_CONTEXT_TOKENS, compute_share, path_bytes
from models.evaluation.retention import task_retentions
from models.evaluation.rows import Passage, Row, passage_of
from models.evaluation.scores import RowScore, agreement, mean_kl, perplexity_ratio
from models.evaluation.table import Evaluation, Point, TaskFigures
from models.graphs.precisions import PRECISIONS
from models.student.folder import Student
from models.student.manifest import Manifest

logger = logging.getLogger(__name__)

PRECISE_FIRST = ("fp32", "int8", "w8a8", "w8a8-native", "int4")
"""The order in which a reference is looked for: the least rounded weights and activations first."""

Scores = dict[str, list[RowScore]]


@dataclass(slots=True, kw_only=True, frozen=True)
class EvalConfig:
    """What to measure. None: every path, every precision that can run here, the most precise one as the reference.

    Texts longer than `max_text_tokens` are cut.
    """

    precisions: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    reference: str | None = None
    max_text_tokens: int = 1024
    seed: int = 0
    num_threads: int | None = None
    native_folder: Path | None = None
    num_speed_rounds: int = NUM_ROUNDS


def evaluate(
    student: Student, rows: Sequence[Row], config: EvalConfig, *, progress_s: float | None = None
) -> Evaluation:
    """Measure every chosen path at every chosen precision; the full path and the reference are always among the points.

    `progress_s` is the time between progress reports on stderr; None: no reports.

    Raises: ConfigError for paths and precisions that the student or this machine lacks, or when no row can be scored.
    """
    run = _Evaluation(student, config, progress_s)
    max_tokens = min(config.max_text_tokens, student.manifest.architecture.max_context_tokens)
    passages = [passage_of(row, student.tokenizer, max_tokens) for row in rows]
    fitting = [passage for passage in passages if passage is not None]
    return run.run(with_other_questions(fitting, max_tokens), num_skipped=passages.count(None))


class _Evaluation:
    def __init__(self, student: Student, config: EvalConfig, progress_s: float | None) -> None:
        self._student = student
        self._manifest = student.manifest
        self._config = config
        self._progress_s = progress_s
        self._full = self._manifest.full_path.name
        self._paths = _chosen_paths(self._manifest, config.paths)
        self._precisions = _chosen_precisions(self._manifest, config)
        self._reference = _chosen_reference(self._manifest, config)

    def run(self, passages: Sequence[Passage], num_skipped: int) -> Evaluation:
        if not passages:
            raise ConfigError("no row can be scored: every prompt is too long for this student; give other rows")
        reference_runner: OnnxRunner | None = None
        reference_scores: list[RowScore] = []
        points: list[Point] = []
        # The reference comes first: every other precision is compared with it.
        for precision in dict.fromkeys((self._reference, *self._precisions)):
            paths = self._paths if precision in self._precisions else (self._full,)
            runner = self._loaded(precision, paths)
            scores = self._score(runner, precision, paths, passages, reference_runner)
            if reference_runner is None:
                reference_runner, reference_scores = runner, scores[self._full]
            points += self._points(precision, scores, reference_scores, self._speeds(runner, paths))
        return Evaluation(
            student=self._manifest.name,
            full_path=self._full,
            reference_precision=self._reference,
            attention_context_tokens=ATTENTION_CONTEXT_TOKENS,
            machine=_machine(self._config),
            seed=self._config.seed,
            num_rows=dict(Counter(passage.dataset for passage in passages)),
            num_skipped=num_skipped,
            points=tuple(points),
        )

    def _loaded(self, precision: str, paths: Sequence[str]) -> OnnxRunner:
        capacity = min(self._manifest.architecture.max_context_tokens, max(self._config.max_text_tokens, POSITION + 1))
        engine = EngineConfig(
            max_running=max(*ROW_COUNTS, len(self._manifest.paths)),
            max_context_tokens=capacity,
            precision=precision,
            num_threads=self._config.num_threads,
            native_folder=self._config.native_folder,
        )
        runner = build_runner(self._student, engine)
        for stage in stages_of(self._manifest, paths):
            runner.load(stage)
        return runner

    def _score(
        self,
        runner: OnnxRunner,
        precision: str,
        paths: Sequence[str],
        passages: Sequence[Passage],
        reference: OnnxRunner | None,
    ) -> Scores:
        runs = PathRuns(runner, self._manifest, paths)
        base = None if reference is None else PathRuns(reference, self._manifest, (self._full,))
        scorer = Scorer(runs, self._full, base)
        scores: Scores = {path: [] for path in paths}
        started_s = time.monotonic()
        for passage in self._with_progress(passages, precision):
            for path, score in scorer.score(passage).items():
                scores[path].append(score)
        logger.info("scored precision=%s rows=%d seconds=%.1f", precision, len(passages), time.monotonic() - started_s)
        return scores

    def _with_progress(self, passages: Sequence[Passage], precision: str) -> Iterable[Passage]:
        every_s = self._progress_s
        return passages if every_s is None else tqdm(passages, desc=precision, unit="row", mininterval=every_s)

    def _speeds(self, runner: OnnxRunner, paths: Sequence[str]) -> dict[str, dict[int, float]]:
        position = min(POSITION, self._manifest.architecture.max_context_tokens - 1)
        return decode_speeds(runner, paths, position, self._config.num_speed_rounds)

    def _points(
        self, precision: str, scores: Scores, reference: list[RowScore], speeds: dict[str, dict[int, float]]
    ) -> list[Point]:
        return [
            self._point(path, precision, rows, scores[self._full], reference, speeds[path])
            for path, rows in scores.items()
        ]

    def _point(
        self,
        name: str,
        precision: str,
        rows: list[RowScore],
        full: list[RowScore],
        reference: list[RowScore],
        speeds: dict[int, float],
    ) -> Point:
        path = self._manifest.path(name)
        measures, retention = task_retentions(rows, full, self._config.seed)
        _, from_reference = task_retentions(rows, reference, self._config.seed)
        return Point(
            path=name,
            precision=precision,
            layers=self._manifest.num_layers_on(path),
            compute_share=compute_share(self._manifest, path),
            compute_share_with_attention=compute_share(self._manifest, path, ATTENTION_CONTEXT_TOKENS),
            agreement=agreement(rows),
            kl=mean_kl(rows),
            perplexity_ratio=perplexity_ratio(rows, reference),
            tasks=_task_figures(rows, reference),
            retention=dict(retention),
            reference_retention=dict(from_reference),
            measures=measures,
            bytes=path_bytes(self._student, path, precision),
            decode_tokens_per_s=speeds,
        )


def _machine(config: EvalConfig) -> str:
    described = describe_machine()
    return f"{described['cpu']}, threads: {config.num_threads or described['cores']}"


def _task_figures(rows: Sequence[RowScore], reference: Sequence[RowScore]) -> dict[str, TaskFigures]:
    figures = {}
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        base = [row for row in reference if row.task == task]
        figures[task] = TaskFigures(
            agreement=agreement(mine),
            kl=mean_kl(mine),
            perplexity_ratio=perplexity_ratio(mine, base),
            num_tokens=sum(row.num_tokens for row in mine),
        )
    return figures


def _chosen_paths(manifest: Manifest, asked: Sequence[str] | None) -> tuple[str, ...]:
    known = [path.name for path in manifest.paths]
    unknown = sorted(set(asked or ()) - set(known))
    if unknown:
        raise ConfigError(f"--paths: student {manifest.name!r} has no {', '.join(unknown)}, only {', '.join(known)}")
    full = manifest.full_path.name
    return tuple(name for name in known if asked is None or name in asked or name == full)


def _chosen_precisions(manifest: Manifest, config: EvalConfig) -> tuple[str, ...]:
    built = [variant.name for variant in manifest.variants]
    unknown = sorted(set(config.precisions or ()) - set(built))
    if unknown:
        raise ConfigError(
            f"--precision: student {manifest.name!r} has no {', '.join(unknown)}, only {', '.join(built)}; "
            "build it with `fenhe build --precision`"
        )
    if config.precisions is not None:
        return tuple(dict.fromkeys(config.precisions))
    runnable = tuple(name for name in built if _can_run(name, config))
    if not runnable:
        raise ConfigError(f"no precision of student {manifest.name!r} can run here: {', '.join(built)}")
    return runnable


def _chosen_reference(manifest: Manifest, config: EvalConfig) -> str:
    built = [variant.name for variant in manifest.variants]
    if config.reference is not None:
        if config.reference not in built:
            raise ConfigError(f"--reference: the student has no {config.reference}, only {', '.join(built)}")
        return config.reference
    ranked = sorted((name for name in built if _can_run(name, config)), key=_rank)
    if not ranked:
        raise ConfigError(f"no precision of student {manifest.name!r} can run here: {', '.join(built)}")
    return ranked[0]


def _rank(precision: str) -> int:
    return PRECISE_FIRST.index(precision) if precision in PRECISE_FIRST else len(PRECISE_FIRST)


def _can_run(precision: str, config: EvalConfig) -> bool:
    if precision not in PRECISIONS:
        return False
    if not PRECISIONS[precision].needs_native:
        return True
    return config.native_folder is not None and library_path(config.native_folder) is not None
