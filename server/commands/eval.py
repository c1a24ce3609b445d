"""`fenhe eval`: measure every path, head and precision of a student, show the tables, keep the figures."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from models.errors import ConfigError

if TYPE_CHECKING:
    from engines.evaluation.choices import EvalConfig
    from models.evaluation.table import Evaluation
    from models.evaluation.texts import Prompt, Texts
    from models.student.folder import Student
    from models.student.manifest import Manifest

QUICK_ROWS = 50
QUICK_SPEED_ROUNDS = 5
TERMINAL_PROGRESS_S, LOG_PROGRESS_S = 0.1, 10.0
SHORT_PROMPT_TOKENS = 100
"""Of the request that `mean_default_compute` is about: no rule for long prompts applies to it."""


def progress_s() -> float:
    """How often to report progress: often on a terminal, seldom in a file."""
    return TERMINAL_PROGRESS_S if sys.stderr.isatty() else LOG_PROGRESS_S


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the student")
    _add_texts(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure, and beside it the paths' words")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page with the front and the tables")
    parser.add_argument("--measured", type=Path, metavar="OUT", help="write the figures to ship with exits and head")
    parser.add_argument("--precision", metavar="NAME,...", help="default: all that can run here")
    parser.add_argument(
        "--path",
        "--paths",
        dest="paths",
        action="append",
        metavar="NAME,...",
        help="default: all; the full path is always measured; may be repeated",
    )
    parser.add_argument(
        "--task",
        "--tasks",
        dest="tasks",
        action="append",
        metavar="NAME,...",
        help="only rows of these tasks; may be repeated",
    )
    parser.add_argument("--reference", metavar="NAME", help="precision to compare with (default: the most precise)")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="MODEL",
        help="the same model in four bits, a GGUF file or a student of one: its full path is measured for comparison",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows of every task in every file")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a first look: --limit {QUICK_ROWS} where no limit is given, no answers of the paths' own, "
        "short speed tests, manifest left as it is",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: every core")
    parser.add_argument("--steps", type=Path, metavar="FILE.jsonl", help="training steps, for the page's loss curves")
    parser.add_argument("--layers", type=Path, metavar="FILE.svg", help="a picture of the layers, for the page")
    parser.add_argument("--no-write", action="store_true", help="leave the student's manifest as it is")


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="PLACE", help="folders with eval_*.jsonl, or such files"
    )
    parser.add_argument("--heldout", type=Path, metavar="FILE.jsonl", help="the full path's own words, if written yet")
    parser.add_argument(
        "--prompts", type=Path, nargs="+", default=[], metavar="FILE.jsonl", help="prompts for the full path's words"
    )
    parser.add_argument(
        "--prompts-heldout",
        type=float,
        metavar="SHARE",
        help="only those of --prompts that a training which held out this share has not seen (default: all)",
    )
    parser.add_argument("--own-words", type=int, metavar="N", help="prompts of every task for them (default: 100)")
    parser.add_argument(
        "--answers", type=int, metavar="N", help="prompts of every task that every path answers (default: 16; 0: none)"
    )


def run(arguments: argparse.Namespace) -> int:
    from engines.evaluation.evaluate import evaluate
    from models.evaluation.describe import describe
    from models.evaluation.report import Pictures, write_report
    from models.evaluation.table import measured_of, store_evaluation, with_evaluation, write_evaluation, write_measured
    from models.student.folder import Student

    _check(arguments)
    # A mistake that is found later would cost the whole measurement.
    pictures = Pictures.read(steps=arguments.steps, layers=arguments.layers)
    student = Student.open(arguments.folder)
    calibration = None if arguments.calibration is None else _in_four_bits(arguments.calibration)
    texts = _texts(arguments)
    evaluation = evaluate(student, texts, _config(arguments), calibration=calibration, progress_s=progress_s())
    manifest = with_evaluation(student.manifest, evaluation)
    evaluation = with_mean_compute(evaluation, manifest)
    print(describe(evaluation))
    if arguments.json is not None:
        write_evaluation(arguments.json, evaluation)
    if arguments.html is not None:
        write_report(arguments.html, evaluation, pictures)
    if arguments.measured is not None:
        write_measured(arguments.measured, measured_of(manifest))
    if not (arguments.no_write or arguments.quick):
        store_evaluation(arguments.folder, evaluation)
        print(f"wrote the figures into the manifest of {arguments.folder}")
    return 0


def _in_four_bits(model: Path) -> "Student":
    """A student folder as it is; a GGUF file is built into the cache in its own blocks."""
    from engines.evaluation.choices import CALIBRATION_PRECISION
    from models.building.cached_student import StudentCache
    from models.sources.fetch import cache_folder
    from models.student.folder import Student

    cache = StudentCache(folder=cache_folder(os.environ), report=lambda line: print(line, file=sys.stderr, flush=True))
    return Student.open(cache.find(model, CALIBRATION_PRECISION, lambda source: (CALIBRATION_PRECISION,)))


def with_mean_compute(evaluation: "Evaluation", manifest: "Manifest") -> "Evaluation":
    """The evaluation with `mean_default_compute`, at the first of the student's precisions that was measured on all its
    paths; without where none was. `manifest` has the evaluation's figures."""
    measured = {(point.precision, point.path) for point in evaluation.points}
    for variant in manifest.variants:
        if all((variant.name, path.name) in measured for path in manifest.paths):
            share = mean_default_compute(manifest, variant.name)
            return msgspec.structs.replace(evaluation, mean_default_compute=share)
    return evaluation


def mean_default_compute(manifest: "Manifest", variant: str) -> float:
    """Share of the full path's compute in an answer token that an idle server spends on a short request which asks for
    nothing, mean over the tasks."""
    from models.evaluation.compute import compute_share
    from models.evaluation.table import LANGUAGE
    from router.decision import Health, Reason, RoutePreferences, StudentState
    from router.policy import PolicyConfig, choose_path
    from router.tasks import SUBJECTS

    student = StudentState(
        name=manifest.name,
        manifest=manifest,
        variant=variant,
        health=Health.READY,
        head=manifest.heads_at(variant)[-1],
    )
    shares = []
    for task in SUBJECTS:
        choice = choose_path(
            student, task, Reason.TASK, RoutePreferences(), SHORT_PROMPT_TOKENS, PolicyConfig(), LANGUAGE
        )
        shares.append(compute_share(manifest, manifest.path(choice.path), head=choice.head))
    return sum(shares) / len(shares)


def _config(arguments: argparse.Namespace) -> "EvalConfig":
    from engines.evaluation.choices import EvalConfig
    from engines.evaluation.speeds import NUM_ROUNDS
    from models.sources.fetch import cache_folder

    defaults = EvalConfig()
    num_answers = 0 if arguments.quick else defaults.num_answer_prompts
    out: Path | None = arguments.json
    return EvalConfig(
        precisions=_names(None if arguments.precision is None else [arguments.precision]),
        paths=_names(arguments.paths),
        reference=arguments.reference,
        num_threads=arguments.threads,
        native_folder=cache_folder(os.environ) / "native",
        num_speed_rounds=QUICK_SPEED_ROUNDS if arguments.quick else NUM_ROUNDS,
        num_own_prompts=defaults.num_own_prompts if arguments.own_words is None else arguments.own_words,
        num_answer_prompts=num_answers if arguments.answers is None else arguments.answers,
        own_words_file=None if out is None else out.with_suffix(".own.jsonl"),
        answers_file=None if out is None else out.with_suffix(".answers.jsonl"),
    )


def _check(arguments: argparse.Namespace) -> None:
    problems = []
    if not arguments.data and arguments.heldout is None and not arguments.prompts:
        problems.append("what to score? Name rows with --data PLACE, --heldout FILE.jsonl or --prompts FILE.jsonl")
    for name, least in (("limit", 1), ("threads", 1), ("own_words", 1), ("answers", 0)):
        number = getattr(arguments, name)
        if number is not None and number < least:
            problems.append(f"--{name.replace('_', '-')} must be at least {least}, not {number}")
    share = arguments.prompts_heldout
    if share is not None and not 0 < share < 1:
        problems.append(f"--prompts-heldout must be above 0 and below 1, not {share}")
    for option, names in (("path", arguments.paths), ("task", arguments.tasks)):
        if _names(names) == ():
            problems.append(f"--{option} names nothing; leave it out for all")
    for name in ("json", "html", "measured"):
        out = getattr(arguments, name)
        if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
            problems.append(f"--{name} {out}: name a file in a folder that exists")
    if problems:
        raise ConfigError("; ".join(problems))


def _texts(arguments: argparse.Namespace) -> "Texts":
    """What to score. Raises: ConfigError for a task that no row has, with those there are."""
    from models.evaluation.rows import OWN_WORDS, read_file
    from models.evaluation.texts import GENERAL, Texts, read_texts

    limit = QUICK_ROWS if arguments.quick and arguments.limit is None else arguments.limit
    texts = read_texts(arguments.data, limit)
    own = [] if arguments.heldout is None else read_file(arguments.heldout, OWN_WORDS, limit)
    prompts = _prompts(arguments, texts, frozenset(row.task for row in own), limit)
    texts = Texts(rows=(*texts.rows, *own), plain=texts.plain, pairs=texts.pairs, prompts=tuple(prompts))
    named = _names(arguments.tasks)
    if named is None:
        return texts
    known = list(dict.fromkeys([*(row.task for row in texts.rows), *(prompt.task for prompt in texts.prompts)]))
    missing = [task for task in named if task not in known]
    if missing:
        raise ConfigError(f"--task: no row is of {', '.join(missing)}, only of {', '.join(known)}")
    return Texts(
        rows=tuple(row for row in texts.rows if row.task in named),
        plain=tuple(text for text in texts.plain if text.task in (*named, GENERAL)),
        pairs=texts.pairs,
        prompts=tuple(prompt for prompt in texts.prompts if prompt.task in named),
    )


def _prompts(
    arguments: argparse.Namespace, texts: "Texts", answered: frozenset[str], limit: int | None
) -> "list[Prompt]":
    """Prompts of tasks whose own words are not written yet. Those of the rows serve where no others are named, unless
    the own words were given or time is short."""
    from engines.evaluation.prompts import prompts_of_files, prompts_of_rows
    from engines.evaluation.writing import spread_by_task

    prompts = [
        one for one in prompts_of_files(arguments.prompts, arguments.prompts_heldout) if one.task not in answered
    ]
    if arguments.heldout is None and not arguments.quick:
        prompts += prompts_of_rows(texts.rows, frozenset(prompt.task for prompt in prompts))
    return prompts if limit is None else spread_by_task(prompts, limit)


def _names(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    if texts is None:
        return None
    names = (name.strip() for text in texts for name in text.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
