"""`fenhe bench grammar`: rows that keep to a grammar beside rows that are free, in the same engine, in turns.

Every row makes the same number of tokens: the grammars cannot end earlier. All rows share a step, so the median step
time of a batch is compared with those of the batches just before and after: noise that affects a few steps, or all
three batches alike, cancels out.
"""

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.engines.progress import Progress, wait_until_loaded
from bench.options import add_json, add_precision, add_rounds, add_student, find_too_small, find_unwritable
from bench.report import describe_setting, fill_document, list_formulas, report_progress, write_document
from bench.rounds import RoundFigures, count_rounds, gather, medians
from engines.build import build_engine
from engines.config import EngineConfig
from engines.contract import Engine
from engines.grammar import Grammar, GrammarCompiler, json_body
from engines.machine import describe_machine, describe_versions
from engines.sequence import GenerationRequest, SamplingParams, SequenceEvent
from models.building.default_student import find_student
from models.errors import ConfigError, EngineFault
from models.sources.fetch import cache_folder
from models.student.folder import Student

ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 8, "maxLength": 40},
        "kind": {"enum": ["person", "place", "thing"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 1000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["name", "kind", "count", "tags"],
    "additionalProperties": False,
}
GRAMMARS = {
    "records": f"start: body\nbody: {json_body({'type': 'array', 'items': ITEM, 'minItems': 5000})}",
    "text": "start: /(.|\\n){100000,}/",
}
"""`records` is what `response_format` asks for, `text` the free part of an answer that may call tools."""

SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
}
PROMPT = "Write a JSON list of the people, places and things in the town, each with name, kind, count and tags."
FORMULAS = {
    "free_step_ms.*": "median time between tokens of a row while all rows run, no grammar; mean of the round",
    "ratio.*": "free step time, mean of the batches just before and after / step time with a grammar on every row",
    "beside.*": "the same with grammars on every other row: what they cost the free rows beside them",
}


@dataclass(slots=True, kw_only=True, frozen=True)
class Load:
    """How many rows run, how far, on which path."""

    num_rows: int
    num_tokens: int
    path: str


class GrammarBench:
    """One engine, and the tokens of one batch after another."""

    def __init__(self, student: Student, config: EngineConfig, load: Load) -> None:
        self._load = load
        self._prompt = tuple(student.tokenizer.encode(PROMPT))
        self._engine: Engine = build_engine(student, config)
        self._progress = Progress(())
        self._num_batches = 0
        compiler = GrammarCompiler(student.tokenizer, student.manifest.architecture.vocab_size)
        self._grammars = {name: compiler.compile(source) for name, source in GRAMMARS.items()}
        self._engine.start(self._publish)
        wait_until_loaded(self._engine)

    def close(self) -> None:
        self._engine.stop(grace_s=0.0)

    def round(self) -> dict[str, float]:
        """Every figure once."""
        figures: dict[str, float] = {}
        for name, sampling in SAMPLINGS.items():
            free_s = [self._step_s(self._batch(sampling, self._rows(None)))]
            for figure, rows in self._bound_rows().items():
                step_s = self._step_s(self._batch(sampling, rows))
                free_s.append(self._step_s(self._batch(sampling, self._rows(None))))
                figures[f"{figure}.{name}"] = statistics.mean(free_s[-2:]) / step_s
            figures[f"free_step_ms.{name}"] = statistics.mean(free_s) * 1000
        return figures

    def _bound_rows(self) -> dict[str, list[Grammar | None]]:
        """The grammar of every row, by figure."""
        every = {f"ratio.{name}": self._rows(grammar) for name, grammar in self._grammars.items()}
        records = self._grammars["records"]
        return every | {"beside": [records if row % 2 else None for row in range(self._load.num_rows)]}

    def _rows(self, grammar: Grammar | None) -> list[Grammar | None]:
        return [grammar] * self._load.num_rows

    def _batch(self, sampling: Mapping[str, float], grammars: Sequence[Grammar | None]) -> list[GenerationRequest]:
        self._num_batches += 1
        return [
            GenerationRequest(
                id=f"batch{self._num_batches}-{row}",
                prompt_token_ids=(*self._prompt, row + 1),
                path=self._load.path,
                sampling=SamplingParams(
                    max_tokens=self._load.num_tokens,
                    seed=row,
                    ignore_eos=grammar is None,
                    grammar=grammar,
                    **sampling,  # type: ignore[arg-type]
                ),
            )
            for row, grammar in enumerate(grammars)
        ]

    def _step_s(self, requests: Sequence[GenerationRequest]) -> float:
        progress = self._progress = Progress([request.id for request in requests])
        for request in requests:
            self._engine.submit(request)
        progress.wait_all()
        times = list(progress.token_times_s.values())
        if any(len(one) != self._load.num_tokens for one in times):
            raise EngineFault("a row ended before its last token: the rows cannot be compared")
        start, end = max(one[0] for one in times), min(one[-1] for one in times)
        steps = [
            later - earlier for one in times for earlier, later in pairwise(one) if start <= earlier < later <= end
        ]
        return statistics.median(steps)

    def _publish(self, events: Sequence[SequenceEvent]) -> None:
        self._progress.add(events)


def run(argv: Sequence[str]) -> int:
    """Measure and print. Raises: ConfigError."""
    options = read_options(argv)
    machine, versions = describe_machine(), describe_versions()
    student = Student.open(options.student or find_student(os.environ, report=report_progress))
    load = Load(num_rows=options.rows, num_tokens=options.tokens, path=options.path or student.manifest.full_path.name)
    rounds = _measure(student, load, options)
    found = gather(rounds)
    notes = [f"{load.num_rows} rows, {load.num_tokens} tokens each, path {load.path}, {len(rounds)} rounds"]
    print(render(found, machine, versions, notes))
    write_document(options.json, fill_document(medians(found), found, FORMULAS, machine, versions, notes))
    return 0


def _measure(student: Student, load: Load, options: argparse.Namespace) -> list[dict[str, float]]:
    config = EngineConfig(
        max_running=load.num_rows,
        prefix_cache_bytes=0,
        precision=options.precision,
        num_threads=options.threads,
        native_folder=cache_folder(os.environ) / "native",
    )
    bench = GrammarBench(student, config, load)
    try:
        bench.round()  # warm-up: buffers grow, and grammars find their common states
        rounds = [bench.round() for _ in count_rounds(options.rounds, report_progress)]
    finally:
        bench.close()
    return rounds


def render(found: RoundFigures, machine: Mapping[str, Any], versions: Mapping[str, str], notes: Sequence[str]) -> str:
    lines = [*describe_setting(machine, versions), *(f"note      {note}" for note in notes), ""]
    for name, median in medians(found).items():
        values = found[name]
        digits = 2 if name.startswith("free") else 3
        lines.append(f"{name:<28} {median:>8.{digits}f}   [{min(values):.{digits}f} {max(values):.{digits}f}]")
    return "\n".join([*lines, *list_formulas(FORMULAS, "median of rounds; in brackets the lowest and highest")])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe bench grammar", description=__doc__)
    add_student(parser)
    parser.add_argument("--path", metavar="NAME", help="path of the student (default: the full one)")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="sequences at once (default 32)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="per sequence (default 64)")
    add_rounds(parser, 8, "after a warm-up round (default 8)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the engine (default: its own choice)")
    add_precision(parser)
    add_json(parser)
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: ConfigError that lists every mistake."""
    options = make_parser().parse_args(argv)
    least = {"rows": 2, "tokens": 2, "rounds": 1, "threads": 1}
    problems = [*find_too_small(options, least), *find_unwritable(options.json)]
    if problems:
        raise ConfigError(*problems)
    return options
