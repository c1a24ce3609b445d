"""`fenhe bench choosing`: the processor time that choosing one row's token takes, for each way of choosing, with the
compiled library and with numpy alone.

Rows are made up: their probabilities fall with their rank as those of words do. Kinds take turns within a round.
"""

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.options import add_json, add_rounds, find_too_small, find_unwritable
from bench.report import describe_setting, fill_document, list_formulas, report_progress, write_document
from bench.rounds import RoundFigures, count_rounds, gather, medians
from engines.drawing import Chooser, PlainChooser
from engines.machine import describe_machine, describe_versions
from engines.native import library_path
from engines.native.choosing import NativeChooser
from engines.sampler import Sampler
from engines.sequence import GenerationRequest, LogitBias, SamplingParams, new_sequence
from engines.sequence import Sequence as Row
from models.errors import ConfigError
from models.sources.fetch import cache_folder
from models.student.manifest import HeadKind

VOCABULARIES = (49_152, 150_000)
NUM_ROWS = 8
NUM_TOKENS = 8
"""Of every row in a round; each has logits of its own."""
LONG_PROMPT = 8000
HEADS: tuple[HeadKind, ...] = ("exact", "cheap")


@dataclass(slots=True, frozen=True)
class Kind:
    """A way of choosing: values of `SamplingParams`, and how long the prompt is."""

    params: Mapping[str, Any] = field(default_factory=dict)
    num_prompt_tokens: int = 10
    biases_all: bool = False


KINDS = {
    "greedy": Kind({"temperature": 0.0}),
    "plain": Kind(),
    "top_p 0.9": Kind({"top_p": 0.9}),
    "top_p 0.9999999": Kind({"top_p": 0.9999999}),
    "min_p 0.05": Kind({"min_p": 0.05}),
    "min_p 1e-30": Kind({"min_p": 1e-30}),
    "top_k 50": Kind({"top_k": 50}),
    "top_k 40000": Kind({"top_k": 40_000}),
    "logit_bias on all": Kind(biases_all=True),
    "logit_bias on all, greedy": Kind({"temperature": 0.0}, biases_all=True),
    "penalties": Kind({"presence_penalty": 0.5, "frequency_penalty": 0.5}),
    "repetition, long prompt": Kind({"repetition_penalty": 1.2}, num_prompt_tokens=LONG_PROMPT),
    "logprobs 0": Kind({"logprobs": 0}),
    "logprobs 20": Kind({"logprobs": 20}),
}
FORMULAS = {
    "us.WITH.VOCABULARY.HEAD.KIND": "processor time of the thread per token, in microseconds, of steps of "
    f"{NUM_ROWS} rows; what the exact head itself costs is not counted"
}


class ChoosingBench:
    """Every kind on every vocabulary with every head, by every chooser."""

    def __init__(self, choosers: Mapping[str, Chooser], vocabularies: Sequence[int], kinds: Sequence[str]) -> None:
        self._choosers = choosers
        self._kinds = kinds
        self._logits = {size: made_up_logits(size) for size in vocabularies}
        self._biases = {size: LogitBias(dict.fromkeys(range(size), -1.0)) for size in vocabularies}

    def round(self) -> dict[str, float]:
        """Every figure once."""
        return {
            f"us.{name}.{size}.{head}.{kind}": self._us(chooser, size, head, KINDS[kind])
            for size in self._logits
            for head in HEADS
            for kind in self._kinds
            for name, chooser in self._choosers.items()
        }

    def _us(self, chooser: Chooser, size: int, head: HeadKind, kind: Kind) -> float:
        sampler = Sampler(lambda token_id: token_id.to_bytes(4, "little"), (), chooser)
        rows = [self._row(seed, size, head, kind) for seed in range(NUM_ROWS)]
        seconds = 0.0
        for logits in self._steps(size):
            begun_s = time.thread_time()
            sampled = sampler.sample(logits, rows, lambda places, exact=logits: exact[places[0] : places[-1] + 1])  # type: ignore[misc]
            seconds += time.thread_time() - begun_s
            for row, one in zip(rows, sampled, strict=True):
                row.token_ids.append(one.token_id)
        return seconds / (NUM_ROWS * NUM_TOKENS) * 1e6

    def _steps(self, size: int) -> Iterator[npt.NDArray[np.float32]]:
        logits = self._logits[size]
        return (logits[step : step + NUM_ROWS] for step in range(NUM_TOKENS))

    def _row(self, seed: int, size: int, head: HeadKind, kind: Kind) -> Row:
        biases: dict[str, Any] = {"logit_bias": self._biases[size]} if kind.biases_all else {}
        prompt = np.random.default_rng(seed).integers(0, size, kind.num_prompt_tokens)
        request = GenerationRequest(
            id=str(seed),
            prompt_token_ids=tuple(prompt.tolist()),
            path="full",
            sampling=SamplingParams(max_tokens=NUM_TOKENS, seed=seed, **kind.params, **biases),
        )
        return new_sequence(request, lambda _: b"", head)


def made_up_logits(size: int) -> npt.NDArray[np.float32]:
    """Shapes: returns [NUM_ROWS + NUM_TOKENS, size]."""
    rng = np.random.default_rng(size)
    fall = -1.1 * np.log(np.arange(1, size + 1))
    rows = [rng.permutation(fall) + rng.normal(0.0, 0.5, size) for _ in range(NUM_ROWS + NUM_TOKENS)]
    return np.array(rows, np.float32)


def run(argv: Sequence[str]) -> int:
    """Measure and print. Raises: ConfigError."""
    options = read_options(argv)
    bench = ChoosingBench(_choosers(), options.vocabularies, options.kinds)
    machine, versions = describe_machine(), describe_versions()
    bench.round()  # warm-up
    found = gather([bench.round() for _ in count_rounds(options.rounds, report_progress)])
    notes = [f"{NUM_ROWS} rows, {NUM_TOKENS} tokens each, {options.rounds} rounds"]
    print(render(found, machine, versions, notes))
    write_document(options.json, fill_document(medians(found), found, FORMULAS, machine, versions, notes))
    return 0


def _choosers() -> dict[str, Chooser]:
    library = library_path(cache_folder(os.environ) / "native")
    plain: dict[str, Chooser] = {"numpy": PlainChooser()}
    return plain if library is None else plain | {"compiled": NativeChooser(library)}


def render(found: RoundFigures, machine: Mapping[str, Any], versions: Mapping[str, str], notes: Sequence[str]) -> str:
    lines = [*describe_setting(machine, versions), *(f"note      {note}" for note in notes), ""]
    for name, median in medians(found).items():
        lines.append(f"{name:<56} {median:>8.1f}   [{min(found[name]):.1f} {max(found[name]):.1f}]")
    return "\n".join([*lines, *list_formulas(FORMULAS, "median of rounds; in brackets the lowest and highest")])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe bench choosing", description=__doc__)
    parser.add_argument(
        "--vocabularies",
        type=int,
        nargs="+",
        default=VOCABULARIES,
        metavar="N",
        help=f"numbers of tokens (default {' '.join(map(str, VOCABULARIES))})",
    )
    parser.add_argument("--kinds", nargs="+", default=tuple(KINDS), metavar="KIND", help="only these ways of choosing")
    add_rounds(parser, 5, "after a warm-up round (default 5)")
    add_json(parser)
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: ConfigError that lists every mistake."""
    options = make_parser().parse_args(argv)
    problems = [*find_too_small(options, {"rounds": 1}), *find_unwritable(options.json)]
    problems += [f"--vocabularies: {size} is less than 100" for size in options.vocabularies if size < 100]
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    problems += [f"--kinds: {kind!r} is none of {', '.join(map(repr, KINDS))}" for kind in unknown]
    if problems:
        raise ConfigError(*problems)
    return options
