"""`fenhe bench head`: decode steps with the cheap head beside steps with the exact one, and how often both find the
same token likeliest.

Both heads are loaded in one runner, so the rest of a step is the same code over the same weights. Equal tokens are
counted on texts that are given, position by position, on every path's own states.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.options import add_json, add_rounds, add_student, find_too_small, find_unwritable
from bench.report import describe_setting, fill_document, list_formulas, report_progress, write_document
from bench.rounds import RoundFigures, count_rounds, gather, medians
from engines.build import build_runner
from engines.config import EngineConfig
from engines.contract import DecodeRow, StepInput
from engines.evaluation.final_states import Text, read_texts
from engines.evaluation.scorer import PathRuns, stages_of
from engines.machine import describe_machine, describe_versions
from engines.onnx.runner import OnnxRunner
from engines.step_times import step_times
from models.building.default_student import find_student
from models.errors import ConfigError
from models.sources.fetch import cache_folder
from models.student.folder import Student
from models.student.manifest import HeadKind

ROW_COUNTS = (1, 8, 32)
MAX_POSITION = 128
NUM_STEPS = 15
MAX_TOKENS = 256
HEADS: tuple[HeadKind, ...] = ("exact", "cheap")
FORMULAS = {
    "step_ms.PATH.ROWS.HEAD": f"decode step of ROWS rows at position {MAX_POSITION}, or the last one the student has; "
    f"median of {NUM_STEPS} of a round",
    "speedup.PATH.ROWS": "step_ms with the exact head / step_ms with the cheap head",
    "same_token.PATH": "share of positions where both heads find the same token likeliest, on the path's own states",
}


@dataclass(slots=True, kw_only=True, frozen=True)
class HeadBench:
    """One runner with both heads, and the paths to measure."""

    runner: OnnxRunner
    student: Student
    paths: tuple[str, ...]

    def round(self) -> dict[str, float]:
        """Every step time once."""
        steps = {
            (path, rows, head): self._step(path, rows, head)
            for path in self.paths
            for rows in ROW_COUNTS
            for head in HEADS
        }
        seconds = step_times(self.runner, steps, num_rounds=NUM_STEPS, num_warm_ups=1)
        figures = {
            f"step_ms.{path}.{rows}.{head}": sorted(times)[NUM_STEPS // 2] * 1e3
            for (path, rows, head), times in seconds.items()
        }
        for path in self.paths:
            for rows in ROW_COUNTS:
                exact_ms, cheap_ms = (figures[f"step_ms.{path}.{rows}.{head}"] for head in HEADS)
                figures[f"speedup.{path}.{rows}"] = exact_ms / cheap_ms
        return figures

    def same_tokens(self, texts: Sequence[Text]) -> dict[str, float]:
        """How often both heads agree, by path."""
        runs = PathRuns(self.runner, self.student.manifest, self.paths)
        same = dict.fromkeys(self.paths, 0)
        num_positions = 0
        for text in texts:
            normed = runs.normed(text.token_ids, first=text.boundary - 1)
            num_positions += len(text.token_ids) - text.boundary
            for path, states in normed.items():
                exact, cheap = (self.runner.run_head(states[:-1], head).argmax(1) for head in HEADS)
                same[path] += int((exact == cheap).sum())
        return {f"same_token.{path}": count / num_positions for path, count in same.items()}

    def _step(self, path: str, num_rows: int, head: HeadKind) -> StepInput:
        position = min(MAX_POSITION, self.student.manifest.architecture.max_context_tokens - 1)
        return StepInput(decode=(DecodeRow(path=path, position=position, token_id=1, head=head),) * num_rows)


def run(argv: Sequence[str]) -> int:
    """Measure and print. Raises: ConfigError."""
    options = read_options(argv)
    machine, versions = describe_machine(), describe_versions()
    student = Student.open(options.student or find_student(os.environ, report=report_progress))
    bench = _open(student, options.threads)
    texts = _texts(student, options)
    bench.round()  # warm-up: buffers grow
    found = gather([bench.round() for _ in count_rounds(options.rounds, report_progress)])
    same = bench.same_tokens(texts)
    num_tokens = sum(len(text.token_ids) - text.boundary for text in texts)
    notes = [f"same tokens over {num_tokens} positions of {len(texts)} texts; {options.rounds} rounds"]
    print(render(found, same, machine, versions, notes))
    figures = medians(found) | same
    write_document(options.json, fill_document(figures, found, FORMULAS, machine, versions, notes))
    return 0


def _texts(student: Student, options: argparse.Namespace) -> list[Text]:
    """Raises: ConfigError that names a line, or when no text is left to count tokens on."""
    max_tokens = min(MAX_TOKENS, student.manifest.architecture.max_context_tokens)
    texts = read_texts(options.texts, student.tokenizer, max_tokens=max_tokens, seed=0)
    if not texts:
        raise ConfigError(
            f"--texts: no text with a token to predict within {max_tokens} tokens; name files with shorter prompts"
        )
    return texts[: options.rows]


def _open(student: Student, num_threads: int | None) -> HeadBench:
    """Raises: ConfigError for a student without a cheap head at the precision that serves."""
    config = EngineConfig(
        max_running=max(ROW_COUNTS),
        max_context_tokens=min(MAX_TOKENS, student.manifest.architecture.max_context_tokens),
        num_threads=num_threads,
        native_folder=cache_folder(os.environ) / "native",
        head="cheap",
    )
    runner = build_runner(student, config)
    paths = tuple(path.name for path in student.manifest.paths if student.manifest.exit(path.exit).is_trained)
    for stage in stages_of(student.manifest, paths):
        runner.load(stage)
    return HeadBench(runner=runner, student=student, paths=paths)


def render(
    found: RoundFigures,
    same: Mapping[str, float],
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    lines = [*describe_setting(machine, versions), *(f"note      {note}" for note in notes), ""]
    for name, median in medians(found).items():
        lines.append(f"{name:<32} {median:>8.3f}   [{min(found[name]):.3f} {max(found[name]):.3f}]")
    lines += [f"{name:<32} {share:>8.4f}" for name, share in same.items()]
    return "\n".join([*lines, *list_formulas(FORMULAS, "median of rounds; in brackets the lowest and highest")])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe bench head", description=__doc__)
    add_student(parser)
    parser.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSONL rows of prompt and answer, or of text",
    )
    parser.add_argument("--rows", type=int, default=200, metavar="N", help="texts to read at most (default 200)")
    add_rounds(parser, 5, "after a warm-up round (default 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the engine (default: its own choice)")
    add_json(parser)
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: ConfigError that lists every mistake."""
    options = make_parser().parse_args(argv)
    problems = [*find_too_small(options, {"rows": 1, "rounds": 1, "threads": 1}), *find_unwritable(options.json)]
    if problems:
        raise ConfigError(*problems)
    return options
