"""`fenhe bench engines`: our engine beside the others, same GGUF, same token ids, greedy, same threads."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.engines.cases import CASES, FULL_EFFORT, QUICK_EFFORT, REFERENCE_PRECISION, Plan, Role
from bench.engines.figures import compute_figures
from bench.engines.report import make_document, render_table
from bench.engines.rounds import PEER_NAMES, SUBJECTS, Rounds, SubjectEntry
from bench.options import add_json, add_precision, add_rounds, add_student, find_too_small, find_unwritable
from bench.protocol import Setup
from bench.report import report_progress, write_document
from bench.workload import DEFAULT_TEXT, read_workload
from engines.machine import describe_machine, describe_versions
from models.building.default_student import DEFAULT_MODEL, find_student
from models.errors import ConfigError, ServingError
from models.student.manifest import MANIFEST_NAME, Manifest, read_manifest

EXIT_FAULTS = 1
EXIT_USAGE = 2


@dataclass(slots=True, kw_only=True, frozen=True)
class Options:
    """The command line, checked. `student` None leaves our own engine out."""

    cases: tuple[str, ...]
    peers: tuple[str, ...]
    student: Path | None
    gguf: Path
    text: Path
    json: Path | None
    num_threads: int
    num_rounds: int
    precision: str
    is_quick: bool


def run(argv: list[str]) -> int:
    """Measure and print. 0: done (peers may be absent), 1: something of ours failed, 2: wrong arguments."""
    if "--engine" in argv:
        from bench.engines import vllm_paths

        return vllm_paths.run(argv)
    try:
        options = read_options(argv)
        with ExitStack() as stack:
            return _measure(options, stack)
    except ServingError as error:
        print(f"fenhe bench engines: {error}", file=sys.stderr)
        return EXIT_USAGE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe bench engines", description=__doc__)
    parser.add_argument(
        "--engine", choices=("vllm",), help="our paths in vLLM beside vLLM itself; has options of its own"
    )
    parser.add_argument("--cases", metavar="A,B", help=f"only these (default all): {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="one round, fewer tokens: for a first look")
    add_rounds(parser, None, "interleaved rounds (default 3; --quick: 1)")
    parser.add_argument("--peers", metavar="A,B", help=f"only these, or none (default all): {', '.join(PEER_NAMES)}")
    parser.add_argument("--peers-only", action="store_true", help="leave fenhe out")
    add_student(parser)
    parser.add_argument(
        "--gguf", type=Path, metavar="FILE", help="the same model for the peers (default: in the cache)"
    )
    add_precision(parser)
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="for every subject (default 2)")
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT, metavar="FILE", help="held-out text: .txt or .jsonl")
    add_json(parser, "FILE")
    return parser


def read_options(argv: Sequence[str]) -> Options:
    """Raises: ConfigError that lists every mistake."""
    given = make_parser().parse_args(argv)
    problems: list[str] = []
    cases = _chosen("--cases", given.cases, tuple(CASES), problems)
    peers = () if given.peers == "none" else _chosen("--peers", given.peers, PEER_NAMES, problems)
    problems += find_too_small(given, {"threads": 1, "rounds": 1})
    if given.peers_only and not peers:
        problems.append("--peers-only with --peers none leaves nothing to measure")
    problems += find_unwritable(given.json)
    student = None if given.peers_only or problems else _student_folder(given.student, problems)
    gguf = given.gguf or Path()
    if not problems:
        gguf = _gguf_file(given.gguf, problems)
    if problems:
        raise ConfigError(*problems)
    return Options(
        cases=cases,
        peers=peers,
        student=student,
        gguf=gguf,
        text=given.text,
        json=given.json,
        num_threads=given.threads,
        num_rounds=given.rounds or (1 if given.quick else 3),
        precision=given.precision,
        is_quick=given.quick,
    )


def _chosen(flag: str, value: str | None, known: tuple[str, ...], problems: list[str]) -> tuple[str, ...]:
    if value is None:
        return known
    names = [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        problems.append(f"{flag}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _student_folder(given: Path | None, problems: list[str]) -> Path:
    if given is None:
        return find_student(os.environ, report=report_progress)
    if not (given / MANIFEST_NAME).is_file():
        problems.append(f"{given} is not a student folder: make one with `fenhe build`")
    return given


def _gguf_file(given: Path | None, problems: list[str]) -> Path:
    from models.sources.fetch import cache_folder, pull

    if given is None:
        return pull(DEFAULT_MODEL, cache_folder(os.environ), show_progress=True)
    if not given.is_file():
        problems.append(f"--gguf {given}: no such file")
    return given


def _measure(options: Options, stack: ExitStack) -> int:
    from models.sources.source import open_source

    machine = describe_machine()
    manifest = None if options.student is None else read_manifest(options.student)
    plan = Plan(
        workload=read_workload(options.text, open_source(options.gguf).tokenizer()),
        effort=QUICK_EFFORT if options.is_quick else FULL_EFFORT,
        paths=() if manifest is None else tuple(path.name for path in manifest.paths),
        precisions=() if manifest is None else _precisions(manifest),
    )
    reference = None
    if manifest is not None and "cross_entropy" in options.cases:
        reference = _reference_folder(options, manifest, stack)
    setup = Setup(
        gguf=str(options.gguf.absolute()),
        student=None if options.student is None else str(options.student.absolute()),
        reference=reference,
        num_threads=options.num_threads,
        precision=options.precision,
    )
    outcome = Rounds(
        cases={name: CASES[name] for name in options.cases},
        subjects=_subjects(options),
        plan=plan,
        setup=setup,
        environ=os.environ,
        report=report_progress,
    ).run(options.num_rounds)
    figures = compute_figures(outcome.records)
    versions = {**describe_versions(), **outcome.versions}
    print(render_table(figures, options.cases, machine, versions, outcome.notes))
    write_document(options.json, make_document(figures, machine, versions, outcome.notes))
    return EXIT_FAULTS if outcome.faults else 0


def _subjects(options: Options) -> list[SubjectEntry]:
    return [
        entry
        for entry in SUBJECTS
        if (entry.name in options.peers if entry.role is Role.PEER else options.student is not None)
    ]


def _precisions(manifest: Manifest) -> tuple[str, ...]:
    """The reference first: the others are compared with it."""
    others = (variant.name for variant in manifest.variants if variant.name != REFERENCE_PRECISION)
    return (REFERENCE_PRECISION, *others)


def _reference_folder(options: Options, manifest: Manifest, stack: ExitStack) -> str | None:
    """An fp32 build of the GGUF for this run, unless the student has fp32 graphs of its own."""
    if any(variant.name == REFERENCE_PRECISION for variant in manifest.variants):
        return None
    from models.building.build import build_student

    report_progress("building the fp32 reference for this run")
    folder = Path(tempfile.mkdtemp(prefix="fenhe-reference-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    build_student(options.gguf, folder / "student", precisions=(REFERENCE_PRECISION,))
    return str(folder / "student")
