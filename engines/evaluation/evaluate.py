"""Every path, head and precision of a student, measured: the run behind `fenhe eval`.

At most two precisions are in memory at a time: the reference and the one that is scored.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engines.build import build_runner
from engines.evaluation.choices import (
    CALIBRATION_PRECISION,
    EvalConfig,
    check_calibration,
    chosen_paths,
    chosen_precisions,
    chosen_reference,
    engine_config,
)
from engines.evaluation.points import PointMaker, mean_requests
from engines.evaluation.scorer import EXACT_ONLY, PathRuns, columns_of, stages_of
from engines.evaluation.scoring import EncodedTexts, Shown, encoded, score_answers, score_texts
from engines.evaluation.speeds import POSITION, ROW_COUNTS, decode_speeds
from engines.evaluation.writing import Writer, Written, prompts_to_answer
from engines.machine import describe_machine
from engines.onnx.runner import OnnxRunner
from models.errors import ConfigError
from models.evaluation.compute import ATTENTION_CONTEXT_TOKENS
from models.evaluation.figures import figures_of
from models.evaluation.judging import judged
from models.evaluation.measures import measures_of
from models.evaluation.rows import Row
from models.evaluation.scores import PathHead, RowScore, Scores
from models.evaluation.table import Calibration, Evaluation, Point
from models.evaluation.texts import Prompt, Texts
from models.student.folder import Student
from models.student.manifest import HeadKind

logger = logging.getLogger(__name__)

CALIBRATION_TEXTS, CALIBRATION_PAIRS = 40, 240
"""How many texts of every task and kind, and how many pairs, the calibration line is measured on."""

PrecisionScores = dict[PathHead, Scores]


def evaluate(
    student: Student,
    texts: Texts,
    config: EvalConfig,
    *,
    calibration: Student | None = None,
    progress_s: float | None = None,
) -> Evaluation:
    """Measure every chosen path at every chosen precision; the full path and the reference are always among the points.

    `calibration` is the same model in four bits, whose full path is measured beside them. `progress_s` is the time
    between progress reports on stderr; None: no reports.

    Raises: ConfigError for paths and precisions that the student or this machine lacks, a calibration of another model,
    or when no row can be scored.
    """
    return _Evaluation(student, config, calibration, progress_s).run(texts)


class _Evaluation:
    def __init__(
        self, student: Student, config: EvalConfig, calibration: Student | None, progress_s: float | None
    ) -> None:
        if calibration is not None:
            check_calibration(student.manifest, calibration.manifest, config)
        self._student = student
        self._four_bits = calibration
        self._manifest = student.manifest
        self._config = config
        self._progress_s = progress_s
        self._full = PathHead(self._manifest.full_path.name, "exact")
        self._paths = chosen_paths(self._manifest, config.paths)
        self._precisions = chosen_precisions(self._manifest, config)
        self._reference = chosen_reference(self._manifest, config)
        self._reference_runner: OnnxRunner | None = None
        self._full_scores: dict[str, Scores] = {}
        self._max_tokens = min(config.max_text_tokens, self._manifest.architecture.max_context_tokens)

    def run(self, texts: Texts) -> Evaluation:
        rows = (*texts.rows, *self._own_words(texts.prompts))
        encoded_texts = encoded(rows, texts.plain, texts.pairs, self._student.tokenizer, self._max_tokens)
        if not encoded_texts.passages:
            raise ConfigError("no row can be scored: every prompt is too long for this student; give other rows")
        return self._measure(encoded_texts, prompts_to_answer(rows, self._config.num_answer_prompts))

    def _own_words(self, prompts: Sequence[Prompt]) -> list[Row]:
        if not prompts:
            return []
        with self._writer(self._reference) as writer:
            return writer.own_words(prompts)

    def _measure(self, texts: EncodedTexts, prompts: Sequence[Prompt]) -> Evaluation:
        maker = PointMaker(student=self._student, requests=mean_requests(texts.passages), seed=self._config.seed)
        points: list[Point] = []
        # The reference comes first: every other precision is compared with it.
        for precision in dict.fromkeys((self._reference, *self._precisions)):
            points += self._points(precision, texts, prompts, maker)
        return Evaluation(
            student=self._manifest.name,
            full_path=self._full.path,
            reference_precision=self._reference,
            attention_context_tokens=ATTENTION_CONTEXT_TOKENS,
            machine=_machine(self._config),
            seed=self._config.seed,
            num_rows=_num_rows(texts),
            num_skipped=texts.num_skipped,
            points=tuple(points),
            calibration=self._calibration(texts),
        )

    def _points(self, precision: str, texts: EncodedTexts, prompts: Sequence[Prompt], maker: PointMaker) -> list[Point]:
        """Everything of one precision. Its runner is let go behind it, unless it is the reference's."""
        is_chosen = precision in self._precisions
        paths = self._paths if is_chosen else (self._full.path,)
        heads = self._manifest.heads_at(precision) if is_chosen else EXACT_ONLY
        written = self._written(precision, columns_of(paths, heads), prompts)
        runner = self._loaded(self._student, precision, paths, heads)
        scores = self._score(PathRuns(runner, self._manifest, paths, heads), precision, texts)
        self._add_answers(runner, precision, scores, written)
        self._reference_runner = self._reference_runner or runner
        self._full_scores[precision] = scores[self._full]
        speeds = self._speeds(runner, paths, heads)
        return [
            maker.point(
                column,
                precision,
                held,
                full=self._full_scores[precision],
                reference=self._full_scores[self._reference],
                speeds=speeds[column],
            )
            for column, held in scores.items()
        ]

    def _writer(self, precision: str) -> Writer:
        return Writer(self._student, precision, self._config, progress_s=self._progress_s)

    def _written(
        self, precision: str, columns: Sequence[PathHead], prompts: Sequence[Prompt]
    ) -> dict[PathHead, list[Written]]:
        """Every path's own answers; none where there is nothing to compare the full path's with."""
        if not prompts or len(columns) < 2:
            return {}
        with self._writer(precision) as writer:
            return {column: writer.answers(prompts, column) for column in columns}

    def _loaded(self, student: Student, precision: str, paths: Sequence[str], heads: Sequence[HeadKind]) -> OnnxRunner:
        manifest = student.manifest
        capacity = min(manifest.architecture.max_context_tokens, max(self._config.max_text_tokens, POSITION + 1))
        rows = max(*ROW_COUNTS, len(manifest.paths))
        engine = engine_config(self._config, precision, heads, max_context_tokens=capacity, max_running=rows)
        runner = build_runner(student, engine)
        for stage in stages_of(manifest, paths):
            runner.load(stage)
        return runner

    def _full_runs(self, runner: OnnxRunner) -> PathRuns:
        return PathRuns(runner, self._manifest, (self._full.path,))

    def _score(self, runs: PathRuns, precision: str, texts: EncodedTexts) -> PrecisionScores:
        base = None if self._reference_runner is None else self._full_runs(self._reference_runner)
        started_s = time.monotonic()
        scores = score_texts(runs, self._full.path, texts, base, Shown(precision, self._progress_s))
        logger.info(
            "scored precision=%s rows=%d seconds=%.1f", precision, len(texts.passages), time.monotonic() - started_s
        )
        return scores

    def _add_answers(
        self,
        runner: OnnxRunner,
        precision: str,
        scores: PrecisionScores,
        written: Mapping[PathHead, Sequence[Written]],
    ) -> None:
        shown = Shown(precision, self._progress_s)
        tokenizer = self._student.tokenizer
        found = score_answers(self._full_runs(runner), written, tokenizer, self._max_tokens, shown)
        for column, answers in found.items():
            scores[column].answers += answers

    def _speeds(
        self, runner: OnnxRunner, paths: Sequence[str], heads: Sequence[HeadKind]
    ) -> dict[PathHead, dict[int, float]]:
        position = min(POSITION, self._manifest.architecture.max_context_tokens - 1)
        found: dict[PathHead, dict[int, float]] = {}
        for head in heads:
            speeds = decode_speeds(runner, paths, position, self._config.num_speed_rounds, head=head)
            found |= {PathHead(path, head): by_rows for path, by_rows in speeds.items()}
        return found

    def _calibration(self, texts: EncodedTexts) -> Calibration | None:
        other, precision = self._four_bits, CALIBRATION_PRECISION
        if other is None:
            return None
        part = texts.part(CALIBRATION_TEXTS, CALIBRATION_PAIRS)
        base = part.scores(self._full_scores[self._reference])
        paths = (self._full.path,)
        runner = self._loaded(other, precision, paths, EXACT_ONLY)
        runs = PathRuns(runner, other.manifest, paths, EXACT_ONLY)
        scores = self._score(runs, precision, texts.taken(part))[self._full]
        compared = replace(scores, rows=[_against_reference(row) for row in scores.rows], answers=[])
        measures = [one.measure for one in measures_of(compared.rows, base.rows, self._config.seed)]
        return Calibration(
            path=self._full.path,
            precision=precision,
            reference_precision=self._reference,
            compute_share=1.0,
            figures=judged(figures_of(compared, base, measures, self._config.seed), self._full, precision),
        )


def _against_reference(row: RowScore) -> RowScore:
    """The comparison with the reference in place of that with the same precision."""
    return replace(row, full_kl=row.kl, num_full_agreed=row.num_agreed)


def _num_rows(texts: EncodedTexts) -> dict[str, int]:
    counts = dict(Counter(passage.dataset for passage in texts.passages))
    others = {"plain texts": len(texts.plain), "pairs of sentences": len(texts.pairs)}
    return counts | {name: count for name, count in others.items() if count}


def _machine(config: EvalConfig) -> str:
    described = describe_machine()
    return f"{described['cpu']}, threads: {config.num_threads or described['cores']}"
