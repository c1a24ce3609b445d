"""`fenhe eval`: measure every path and precision of a student, show the table, keep the figures."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ConfigError

if TYPE_CHECKING:
    from models.evaluation.rows import Row

HELDOUT = "heldout"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the student")
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="PLACE", help="folders with eval_*.jsonl, or such files"
    )
    parser.add_argument("--heldout", type=Path, metavar="FILE.jsonl", help="rows {task, prompt, answer} of plain text")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page with the front and the tables")
    parser.add_argument("--precision", metavar="NAME,...", help="default: all that can run here")
    parser.add_argument("--paths", metavar="NAME,...", help="default: all; the full path is always measured")
    parser.add_argument("--reference", metavar="NAME", help="precision to compare with (default: the most precise)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows of every file")
    parser.add_argument("--threads", type=int, metavar="N", help="default: every core")
    parser.add_argument("--steps", type=Path, metavar="FILE.jsonl", help="training steps, for the page's loss curves")
    parser.add_argument("--layers", type=Path, metavar="FILE.svg", help="a picture of the layers, for the page")
    parser.add_argument("--no-write", action="store_true", help="leave the student's manifest as it is")


def run(arguments: argparse.Namespace) -> int:
    from engines.evaluation.evaluate import EvalConfig, evaluate
    from models.evaluation.describe import describe
    from models.evaluation.report import Pictures, write_report
    from models.evaluation.table import store_evaluation, write_evaluation
    from models.fetch import cache_folder
    from models.student import Student

    _check(arguments)
    # What is found later would cost the whole measurement.
    pictures = Pictures.read(steps=arguments.steps, layers=arguments.layers)
    student = Student.open(arguments.folder)
    config = EvalConfig(
        precisions=_names(arguments.precision),
        paths=_names(arguments.paths),
        reference=arguments.reference,
        num_threads=arguments.threads,
        native_folder=cache_folder(os.environ) / "native",
    )
    rows = _rows(arguments)
    evaluation = evaluate(student, rows, config, show_progress=sys.stderr.isatty())
    print(describe(evaluation))
    if arguments.json is not None:
        write_evaluation(arguments.json, evaluation)
    if arguments.html is not None:
        write_report(arguments.html, evaluation, pictures)
    if not arguments.no_write:
        store_evaluation(arguments.folder, evaluation)
        print(f"wrote the figures into the manifest of {arguments.folder}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    problems = []
    if not arguments.data and arguments.heldout is None:
        problems.append("what to score? Name rows with --data PLACE or --heldout FILE.jsonl")
    if arguments.limit is not None and arguments.limit < 1:
        problems.append(f"--limit must be at least 1, not {arguments.limit}")
    for name in ("json", "html"):
        out = getattr(arguments, name)
        if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
            problems.append(f"--{name} {out}: name a file in a folder that exists")
    if problems:
        raise ConfigError("; ".join(problems))


def _rows(arguments: argparse.Namespace) -> Sequence["Row"]:
    from models.evaluation.rows import read_data, read_file

    rows = read_data(arguments.data, arguments.limit)
    if arguments.heldout is not None:
        rows += read_file(arguments.heldout, HELDOUT, arguments.limit)
    return rows


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
