"""From rows to a classifier file: features, sources left out, calibration, the model on everything, eight bits."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from models.errors import ConfigError
from models.file_writing import write_whole
from router.classifier.classify import CHECKSUM, FORMAT_VERSION, METADATA_KEY, Settings, checksum
from router.classifier.features import read_features
from router.tasks import GENERAL, TASKS
from router.training.augment import Variation
from router.training.calibrate import Calibration, calibrate, thresholds
from router.training.corpus import LABELS, Row, read_rows, row_weights, written_rows
from router.training.fit import Bag, FitConfig, LinearModel, bag_of, fit
from router.training.folds import fold_numbers
from router.training.grammar import GRAMMAR_FOLDER, read_grammars
from router.training.measure import Floats, Judged, task_of

logger = logging.getLogger(__name__)

Report = Callable[[str], None]


@dataclass(slots=True, kw_only=True, frozen=True)
class TrainConfig:
    """`num_variants` more texts per row; `num_folds` groups of sources left out in turn for calibration.

    Context weights: see `router.classifier.classify.Settings`. Source: follow-ups ("and the second one?") after a
    request, and a new request after another, drawn from dev.jsonl: 90 % of the former keep the task, 96 % of the latter
    take the new.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    num_variants: int = 3
    num_folds: int = 8
    seed: int = 0
    earlier_weight: float = 4.0
    system_weight: float = 0.8
    context_half_chars: float = 30.0
    grammar_folder: Path = GRAMMAR_FOLDER


@dataclass(slots=True, kw_only=True, frozen=True)
class Corpus:
    """Rows, and the features of each: of its text first, then of its variants."""

    rows: tuple[Row, ...]
    bags: tuple[tuple[Bag, ...], ...]
    labels: npt.NDArray[np.int64]
    digest: str


@dataclass(slots=True, kw_only=True, frozen=True)
class Trained:
    """The model on everything, and how models without a source judged that source."""

    model: LinearModel
    calibration: Calibration
    unseen: Judged
    rows: tuple[Row, ...]
    digest: str


def train(data: Path, out: Path, config: TrainConfig, report: Report) -> Trained:
    """Train on `data/train.jsonl` and write the classifier to `out`. Same data and seed, same bytes.

    Raises: ConfigError for data that cannot be read or is too little.
    """
    corpus = read_corpus(data, config, report)
    report(f"{len(corpus.rows)} rows, {config.num_variants} variants of each")
    unseen_logits, tested = judge_unseen(corpus, config, report)
    rows = [corpus.rows[index] for index in tested]
    calibration = calibrate(rows, unseen_logits)
    report(f"calibrated: {calibration}")
    model = _fit(corpus, range(len(corpus.rows)), config)
    write_classifier(out, model, calibration, config, corpus.digest)
    return Trained(
        model=model,
        calibration=calibration,
        unseen=_judge(rows, unseen_logits, calibration),
        rows=corpus.rows,
        digest=corpus.digest,
    )


def read_corpus(data: Path, config: TrainConfig, report: Report) -> Corpus:
    file = data / "train.jsonl"
    real = read_rows(file)
    grammars = read_grammars(config.grammar_folder)
    rows = (*real, *written_rows(grammars, config.seed))
    unknown = {grammar.label for grammar in grammars} - set(LABELS)
    if unknown:
        raise ConfigError(f"{config.grammar_folder}: no label is called {', '.join(sorted(unknown))}")
    missing = set(LABELS) - {row.label for row in rows}
    if missing:
        raise ConfigError(f"{file}: no rows for {', '.join(sorted(missing))}; every label needs some")
    variation = Variation(rows, config.seed)
    report("reading features")
    bags = tuple(
        tuple(_bag(text, config.fit) for text in (row.text, *_variants(row, variation, config))) for row in rows
    )
    labels = np.array([TASKS.index(task_of(row.label)) for row in rows])
    return Corpus(rows=rows, bags=bags, labels=labels, digest=_digest(rows))


def _bag(text: str, config: FitConfig) -> Bag:
    return bag_of(read_features(text, config.num_bits), config.opening_weight)


def _variants(row: Row, variation: Variation, config: TrainConfig) -> list[str]:
    return [variation.vary(row) for _ in range(config.num_variants)]


def _digest(rows: Sequence[Row]) -> str:
    return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()


def judge_unseen(corpus: Corpus, config: TrainConfig, report: Report) -> tuple[Floats, list[int]]:
    """Logits of every real row by a model that saw nothing of its data set, and the rows' numbers.

    Shapes: [real rows, tasks].
    """
    folds = fold_numbers(corpus.rows, config.num_folds)
    numbers = sorted({fold for fold in folds if fold is not None})
    if len(numbers) < 2 and None not in folds:
        raise ConfigError("all rows are of one data set: nothing would be left to train on when it is left out")
    tested = [[index for index, fold in enumerate(folds) if fold == number] for number in numbers]
    jobs = [(number, [index for index, fold in enumerate(folds) if fold != number]) for number in numbers]
    logits: list[Floats] = []
    with ProcessPoolExecutor(
        min(len(jobs), os.cpu_count() or 1), get_context("fork"), _share, (corpus, config, tested)
    ) as workers:
        for done, part in enumerate(workers.map(_judge_fold, jobs), 1):
            logits.append(part)
            report(f"{done} of {len(jobs)} groups of sources left out")
    return np.concatenate(logits), [index for part in tested for index in part]


_shared: tuple[Corpus, TrainConfig, list[list[int]]]
"""What a worker process was started with; only `_share` sets it, only in workers."""


def _share(corpus: Corpus, config: TrainConfig, tested: list[list[int]]) -> None:
    global _shared  # noqa: PLW0603
    _shared = (corpus, config, tested)


def _judge_fold(job: tuple[int, list[int]]) -> Floats:
    corpus, config, tested = _shared
    number, trained_on = job
    model = _fit(corpus, trained_on, config)
    return np.array([model.logits(corpus.bags[index][0]) for index in tested[number]], np.float64)


def _fit(corpus: Corpus, indices: Sequence[int], config: TrainConfig) -> LinearModel:
    """Every text of these rows is a row of its own; variants come after all originals."""
    weights = row_weights([corpus.rows[index] for index in indices])
    texts = range(1 + config.num_variants)
    bags = [corpus.bags[index][text] for text in texts for index in indices]
    labels = np.tile(corpus.labels[list(indices)], len(texts))
    return fit(bags, labels, np.tile(weights, len(texts)), len(TASKS), config.fit)


def _judge(rows: Sequence[Row], logits: Floats, calibration: Calibration) -> Judged:
    probabilities = calibration.probabilities(logits)
    rejected = calibration.refuses(probabilities)
    verdicts = [
        GENERAL if is_rejected else TASKS[best]
        for is_rejected, best in zip(rejected, probabilities.argmax(axis=1), strict=True)
    ]
    return Judged(rows=rows, verdicts=verdicts, probabilities=probabilities)


def write_classifier(out: Path, model: LinearModel, calibration: Calibration, config: TrainConfig, digest: str) -> None:
    """Write weights as int8 with one scale, the calibration folded in."""
    step = float(np.abs(model.weights).max()) / 127
    weights = np.rint(model.weights / np.float32(step)).astype(np.int8)
    bias = model.bias.astype(np.float64) / calibration.temperature
    bias[TASKS.index(GENERAL)] += calibration.general_bias
    settings = Settings(
        format_version=FORMAT_VERSION,
        labels=TASKS,
        num_bits=config.fit.num_bits,
        scale=step / calibration.temperature,
        opening_weight=config.fit.opening_weight,
        bias=tuple(bias.tolist()),
        thresholds=thresholds(calibration),
        earlier_weight=config.earlier_weight,
        system_weight=config.system_weight,
        context_half_chars=config.context_half_chars,
        trained_on=digest,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.encode(settings).decode()
    write_whole(out, save({"weights": weights, CHECKSUM: checksum(text, weights)}, {METADATA_KEY: text}))
