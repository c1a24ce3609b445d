"""`fenhe eval`: measure every path and precision of a student, show the table, keep the figures."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ConfigError

if TYPE_CHECKING:
    from engines.evaluation.evaluate import EvalConfig
    from models.evaluation.rows import Row

HELDOUT = "heldout"


QUICK_ROWS = 50
QUICK_SPEED_ROUNDS = 5
TERMINAL_PROGRESS_S, LOG_PROGRESS_S = 0.1, 10.0


def progress_s() -> float:
    """How often to report progress: often on a terminal, seldom in a file."""
    return TERMINAL_PROGRESS_S if sys.stderr.isatty() else LOG_PROGRESS_S


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the student")
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="PLACE", help="folders with eval_*.jsonl, or such files"
    )
    parser.add_argument("--heldout", type=Path, metavar="FILE.jsonl", help="rows {task, prompt, answer} of plain text")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page with the front and the tables")
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
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows of every task in every file")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a first look: --limit {QUICK_ROWS} where no limit is given, short speed tests, manifest left as it is",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: every core")
    parser.add_argument("--steps", type=Path, metavar="FILE.jsonl", help="training steps, for the page's loss curves")
    parser.add_argument("--layers", type=Path, metavar="FILE.svg", help="a picture of the layers, for the page")
    parser.add_argument("--no-write", action="store_true", help="leave the student's manifest as it is")


def run(arguments: argparse.Namespace) -> int:
    from engines.evaluation.evaluate import evaluate
    from models.evaluation.describe import describe
    from models.evaluation.report import Pictures, write_report
    from models.evaluation.table import store_evaluation, write_evaluation
    from models.student.folder import Student

    _check(arguments)
    # A mistake that is found later would cost the whole measurement.
    pictures = Pictures.read(steps=arguments.steps, layers=arguments.layers)
    student = Student.open(arguments.folder)
    rows = _rows(arguments)
    evaluation = evaluate(student, rows, _config(arguments), progress_s=progress_s())
    print(describe(evaluation))
    if arguments.json is not None:
        write_evaluation(arguments.json, evaluation)
    if arguments.html is not None:
        write_report(arguments.html, evaluation, pictures)
    if not (arguments.no_write or arguments.quick):
        store_evaluation(arguments.folder, evaluation)
        print(f"wrote the figures into the manifest of {arguments.folder}")
    return 0


def _config(arguments: argparse.Namespace) -> "EvalConfig":
    from engines.evaluation.evaluate import EvalConfig
    from engines.evaluation.speeds import NUM_ROUNDS
    from models.sources.fetch import cache_folder

    return EvalConfig(
        precisions=_names(None if arguments.precision is None else [arguments.precision]),
        paths=_names(arguments.paths),
        reference=arguments.reference,
        num_threads=arguments.threads,
        native_folder=cache_folder(os.environ) / "native",
        num_speed_rounds=QUICK_SPEED_ROUNDS if arguments.quick else NUM_ROUNDS,
    )


def _check(arguments: argparse.Namespace) -> None:
    problems = []
    if not arguments.data and arguments.heldout is None:
        problems.append("what to score? Name rows with --data PLACE or --heldout FILE.jsonl")
    for name in ("limit", "threads"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            problems.append(f"--{name} must be at least 1, not {number}")
    for option, names in (("path", arguments.paths), ("task", arguments.tasks)):
        if _names(names) == ():
            problems.append(f"--{option} names nothing; leave it out for all")
    for name in ("json", "html"):
        out = getattr(arguments, name)
        if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
            problems.append(f"--{name} {out}: name a file in a folder that exists")
    if problems:
        raise ConfigError("; ".join(problems))


def _rows(arguments: argparse.Namespace) -> Sequence["Row"]:
    """The rows to score. Raises: ConfigError for a task that no row has, with those there are."""
    from models.evaluation.rows import read_data, read_file

    limit = QUICK_ROWS if arguments.quick and arguments.limit is None else arguments.limit
    rows = read_data(arguments.data, limit)
    if arguments.heldout is not None:
        rows += read_file(arguments.heldout, HELDOUT, limit)
    named = _names(arguments.tasks)
    if named is None:
        return rows
    known = list(dict.fromkeys(row.task for row in rows))
    missing = [task for task in named if task not in known]
    if missing:
        raise ConfigError(f"--task: no row is of {', '.join(missing)}, only of {', '.join(known)}")
    return [row for row in rows if row.task in named]


def _names(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    if texts is None:
        return None
    names = (name.strip() for text in texts for name in text.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
