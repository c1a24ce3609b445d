"""`fenhe bench engines --engine vllm`: a student's paths in vLLM beside vLLM itself, same weights, same run.

Both subjects are open at once and take turns within a round, the first one changing from round to round.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench.engines.random_student import build_random_student
from bench.options import add_json, add_rounds, add_student, find_too_small, find_unwritable
from bench.peers.vllm_paths import MAX_SEQUENCES, spread
from bench.process import SubjectProcess
from bench.protocol import Follow, Followed, Opened, Setup
from bench.report import describe_setting, fill_document, list_formulas, report_progress, write_document
from bench.rounds import count_rounds, gather, medians
from engines.machine import describe_machine
from models.errors import ConfigError, ServingError
from models.student.manifest import Manifest, StudentPath, read_manifest

EXIT_FAULTS = 1
EXIT_USAGE = 2
TIMEOUT_S = 1800.0
WARM_TOKENS = 4
PROMPT_TOKENS = 32
SUBJECTS = {"stock": "bench.peers.vllm_paths:StockVllm", "paths": "bench.peers.vllm_paths:PathVllm"}

FORMULAS = {
    "tokens_per_s.CASE": f"answer tokens of {MAX_SEQUENCES} sequences / seconds from submission to the end",
    "full_over_stock": "tokens_per_s.full / tokens_per_s.stock; aim 0.97",
    "mix_speedup": "tokens_per_s.mix / tokens_per_s.full",
    "mix_ideal": "multiply-adds of a full token / mean of those of the mix, the head's included",
    "mix_over_ideal": "mix_speedup / mix_ideal; aim 0.9, at least 0.75",
    "least_over_ideal": "tokens_per_s.least / tokens_per_s.full over the multiply-adds of a full token / one of the "
    "cheapest path; every row is on that path",
    "gap_p95_ms.CASE": "95th percentile of the time between two tokens of a sequence of the shallowest path",
}


class Failed(ServingError):
    """A subject did not answer."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe bench engines --engine vllm", description=__doc__)
    parser.add_argument("--engine", choices=("vllm",), required=True)
    add_student(parser)
    parser.add_argument("--random", action="store_true", help="a random student of half a billion parameters instead")
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--eager", action="store_true", help="compile nothing, on either side")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens of an answer (default 64)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    add_rounds(parser, 3, "rounds of everything (default 3)")
    add_json(parser)
    return parser


def run(argv: list[str]) -> int:
    """Measure and print. 0: done, 1: something failed, 2: wrong arguments."""
    try:
        options = _read(argv)
        with ExitStack() as stack:
            return _measure(options, stack)
    except Failed as error:
        print(f"fenhe bench engines: {error}", file=sys.stderr)
        return EXIT_FAULTS
    except ServingError as error:
        print(f"fenhe bench engines: {error}", file=sys.stderr)
        return EXIT_USAGE


def _read(argv: list[str]) -> argparse.Namespace:
    options = make_parser().parse_args(argv)
    problems = find_too_small(options, {"tokens": 8, "threads": 1, "rounds": 1}) + find_unwritable(options.json)
    if not options.random and options.student is None:
        problems.append("--student DIR, a student with fp32 weights, or --random is needed")
    if problems:
        raise ConfigError(*problems)
    return options


def _measure(options: argparse.Namespace, stack: ExitStack) -> int:
    folder = options.student
    if options.random:
        report_progress("building a random student")
        folder = build_random_student(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fenhe-bench-"))))
    manifest = read_manifest(folder)
    setup = Setup(
        student=str(folder),
        num_threads=options.threads,
        precision=f"{options.dtype},eager" if options.eager else options.dtype,
    )
    open_ = {name: _opened(stack, name, setup) for name in SUBJECTS}
    rounds = [
        _round(open_, manifest, options.tokens, number) for number in count_rounds(options.rounds, report_progress)
    ]
    found = gather(rounds)
    figures = medians(found)
    notes = [f"student {manifest.name}, {setup.precision}, answers of {options.tokens} tokens"]
    machine = describe_machine()
    print("\n".join(describe_setting(machine, {})))
    print(render(figures, found))
    print("\n".join(list_formulas(FORMULAS, f"medians of {options.rounds} rounds")))
    write_document(options.json, fill_document(figures, found, FORMULAS, machine, {}, notes))
    return 0


def _opened(stack: ExitStack, name: str, setup: Setup) -> SubjectProcess:
    report_progress(f"opening {name}")
    process = stack.enter_context(SubjectProcess(SUBJECTS[name], environ=os.environ, timeout_s=TIMEOUT_S))
    answer = process.ask(setup)
    if not isinstance(answer, Opened):
        raise Failed(f"{name}: {answer}")
    return process


def render(figures: Mapping[str, float], rounds: Mapping[str, Sequence[float]]) -> str:
    """A line per figure, with its rounds' lowest and highest."""
    lines = [
        f"{name:28} {value:10.3f}   ({min(rounds[name]):.3f} .. {max(rounds[name]):.3f})"
        for name, value in figures.items()
    ]
    return "\n".join(["", f"{'figure':28} {'median':>10}   (lowest .. highest)", *lines])


def _round(open_: Mapping[str, SubjectProcess], manifest: Manifest, num_tokens: int, number: int) -> dict[str, float]:
    """Every case once. What is compared runs one after the other, in an order that changes."""
    jobs = list(cases(manifest))
    if number % 2:
        jobs.reverse()
    answers: dict[str, Followed] = {}
    for case, subject, paths in jobs:
        _follow(open_[subject], paths, WARM_TOKENS)
        answers[case] = _follow(open_[subject], paths, num_tokens)
    return figures_of(answers, manifest)


def cases(manifest: Manifest) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What to run: the case, its subject, and the path of every sequence."""
    full, shallowest = manifest.full_path.name, manifest.paths_by_depth[0].name
    everything = [path.name for path in manifest.paths]
    few = MAX_SEQUENCES // 4
    yield "stock", "stock", (full,) * MAX_SEQUENCES
    yield "full", "paths", (full,) * MAX_SEQUENCES
    yield "mix", "paths", spread(everything, MAX_SEQUENCES)
    yield "least", "paths", (shallowest,) * MAX_SEQUENCES
    yield "shallow_alone", "paths", (shallowest,) * few
    yield "shallow_mixed", "paths", (shallowest,) * few + (full,) * (MAX_SEQUENCES - few)


def _follow(process: SubjectProcess, paths: Sequence[str], num_tokens: int) -> Followed:
    random = np.random.default_rng(len(paths))
    prompts = tuple(tuple(random.integers(5, 250, PROMPT_TOKENS).tolist()) for _ in paths)
    answer: Any = process.ask(Follow(prompts=prompts, paths=tuple(paths), num_tokens=num_tokens))
    if not isinstance(answer, Followed):
        raise Failed(str(answer))
    return answer


def figures_of(answers: Mapping[str, Followed], manifest: Manifest) -> dict[str, float]:
    speeds = {case: answer.num_tokens / answer.total_s for case, answer in answers.items()}
    found = {f"tokens_per_s.{case}": speeds[case] for case in ("stock", "full", "mix", "least")}
    shallowest = manifest.paths_by_depth[0].name
    gaps = {
        f"gap_p95_ms.{case}": 1000 * float(np.percentile(answers[case].gaps_s[shallowest], 95))
        for case in ("shallow_alone", "shallow_mixed")
    }
    ideal = ideal_speedup(manifest, manifest.paths)
    least = ideal_speedup(manifest, manifest.paths_by_depth[:1])
    speedup = speeds["mix"] / speeds["full"]
    return {
        **found,
        "full_over_stock": speeds["full"] / speeds["stock"],
        "mix_speedup": speedup,
        "mix_ideal": ideal,
        "mix_over_ideal": speedup / ideal,
        "least_over_ideal": speeds["least"] / speeds["full"] / least,
        **gaps,
    }


def ideal_speedup(manifest: Manifest, paths: Sequence[StudentPath]) -> float:
    """Of a mix with as many rows on each of these: the full path's cost over their mean."""
    head = manifest.architecture.vocab_size * manifest.architecture.hidden_size

    def cost(path: StudentPath) -> int:
        return manifest.multiply_adds_on(path) + head

    return cost(manifest.full_path) / float(np.mean([cost(path) for path in paths]))
