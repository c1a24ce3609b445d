"""`fenhe router train` and `fenhe router eval`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from models.errors import ConfigError
from router.classifier.classify import SHIPPED, TaskClassifier
from router.training.card import write_card
from router.training.corpus import read_rows
from router.training.evaluate import describe, judge, write_json, write_report
from router.training.fit import FitConfig
from router.training.measure import Figures
from router.training.train import TrainConfig, train


def run(arguments: Sequence[str]) -> int:
    """Run the rest of the line. Raises: ConfigError."""
    parsed = make_parser().parse_args(arguments)
    status: int = parsed.run(parsed)
    return status


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe router", description="Train and judge the task classifier.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    training = commands.add_parser("train", help="train a classifier: same data and seed, same bytes")
    training.add_argument("--data", type=Path, required=True, metavar="DIR", help="has train.jsonl, perhaps dev.jsonl")
    training.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the classifier to write; its model card goes beside it as FILE with .md",
    )
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--debug", action="store_true", help="show the traceback of an error")
    training.set_defaults(run=run_train)
    judging = commands.add_parser("eval", help="judge a classifier on labelled rows")
    judging.add_argument("file", type=Path, metavar="FILE.jsonl", help="rows of text, label, lang, source")
    judging.add_argument("--classifier", type=Path, default=SHIPPED, metavar="FILE", help="default: the one that ships")
    judging.add_argument("--json", type=Path, metavar="OUT", help="write figures and sources")
    judging.add_argument("--report", type=Path, metavar="OUT.html", help="write a page with plots (needs matplotlib)")
    judging.add_argument("--debug", action="store_true", help="show the traceback of an error")
    judging.set_defaults(run=run_eval)
    return parser


def run_train(arguments: argparse.Namespace) -> int:
    """Write the classifier and, beside it, its model card: the same name with `.md`."""
    if arguments.out.is_dir():
        raise ConfigError(f"--out {arguments.out} is a folder; name a file in it")
    trained = train(
        arguments.data, arguments.out, TrainConfig(seed=arguments.seed, fit=FitConfig(seed=arguments.seed)), _report
    )
    tested: dict[str, Figures] = {}
    dev = arguments.data / "dev.jsonl"
    if dev.exists():
        _, tested["dev.jsonl (same sources)"] = judge(TaskClassifier.load(arguments.out), read_rows(dev))
    card = arguments.out.with_suffix(".md")
    card.write_text(write_card(trained.unseen, trained.rows, tested, trained.digest), encoding="utf-8")
    print(f"wrote {arguments.out} and {card}")
    return 0


def run_eval(arguments: argparse.Namespace) -> int:
    rows = read_rows(arguments.file)
    judged, found = judge(TaskClassifier.load(arguments.classifier), rows)
    print(describe(judged, found))
    if arguments.json is not None:
        write_json(arguments.json, judged, found)
    if arguments.report is not None:
        write_report(arguments.report, judged, found, f"Task classifier on {arguments.file.name}")
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
