"""`python -m engines.evaluation.online STUDENT EVALUATION.json`: the online figure beside the evaluation's own.

Answers that `fenhe eval` had paths write (beside its JSON) are scored as a server scores answers, by sequences in the
background of an engine. `rescored_nats_ratio` compares them with the full path's answers to the same prompts, the
online figure with what the full path would have drawn behind the same texts: both should say the same.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue

import msgspec
import numpy as np

from engines.answer_score import AnswerScore
from engines.build import build_engine
from engines.contract import Engine
from engines.evaluation.choices import EvalConfig, engine_config
from engines.evaluation.writing import TEMPERATURE, TOP_P, Writer, Written, written_passage
from engines.sequence import GenerationRequest, SamplingParams, SequenceEvent
from models.errors import ConfigError, StepFailed
from models.evaluation.figures import Figure
from models.evaluation.json_lines import parsed_lines
from models.evaluation.resampling import interval, resampled_sums
from models.evaluation.rows import Passage
from models.evaluation.scores import PathHead
from models.evaluation.texts import Prompt
from models.student.folder import Student

SAMPLING = SamplingParams(max_tokens=0, temperature=TEMPERATURE, top_p=TOP_P)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Of the file of answers: what was asked."""

    task: str
    prompt: str


def score_in_background(engine: Engine, full_path: str, passages: Sequence[Passage]) -> list[AnswerScore]:
    """What a server would find of every answer. The engine is started here, and not stopped. Raises: StepFailed."""
    events: SimpleQueue[Sequence[SequenceEvent]] = SimpleQueue()
    engine.start(events.put)
    scores = []
    for number, passage in enumerate(passages):
        request = GenerationRequest(
            id=str(number),
            prompt_token_ids=passage.token_ids,
            path=full_path,
            sampling=SAMPLING,
            scored_from=passage.boundary,
            in_background=True,
        )
        engine.submit(request)
        scores.append(_score_in(events))
    return scores


def _score_in(events: "SimpleQueue[Sequence[SequenceEvent]]") -> AnswerScore:
    score = None
    while True:
        for event in events.get():
            score = event.score or score
            if event.finish is not None:
                if score is None:
                    raise StepFailed(f"an answer could not be scored: {event.finish.error or event.finish.reason}")
                return score


def online_ratio(scores: Sequence[AnswerScore], name: str) -> Figure:
    """Nats over those expected: the inverse of what a path keeps, as `rescored_nats_ratio` is."""
    columns = np.array([[one.nats for one in scores], [one.expected_nats for one in scores]], np.float64)
    sums = resampled_sums(columns, name, 0)
    value = float(columns[0].sum() / columns[1].sum())
    low, high = interval(sums[0] / sums[1], value)
    return Figure(value=value, low=low, high=high, rows=len(scores))


def passages_of(written: Sequence[Written], student: Student, max_tokens: int) -> dict[str, list[Passage]]:
    """By task."""
    found: dict[str, list[Passage]] = {}
    for one in written:
        passage = written_passage(one, student.tokenizer, max_tokens)
        if passage is not None:
            found.setdefault(one.task, []).append(passage)
    return found


def lines_of(student: Student, evaluation: Path, config: EvalConfig, precision: str) -> Iterator[str]:
    """A line for every path, head and task. Raises: ConfigError."""
    figures = _rescored(evaluation, precision)
    file = config.answers_file
    assert file is not None
    asked = {(line.task, line.prompt): None for _, line in parsed_lines(file, Line, "an object", "answers")}
    prompts = [Prompt(task=task, prompt=prompt) for task, prompt in asked]
    max_tokens = min(config.max_text_tokens, student.manifest.architecture.max_context_tokens)
    engine = build_engine(
        student, engine_config(config, precision, ("exact",), max_context_tokens=max_tokens, max_running=1)
    )
    with Writer(student, precision, config) as writer:
        by_column = {column: passages_of(writer.answers(prompts, column), student, max_tokens) for column in figures}
    flat = [passage for by_task in by_column.values() for passages in by_task.values() for passage in passages]
    scores = iter(score_in_background(engine, student.manifest.full_path.name, flat))
    for column, by_task in by_column.items():
        for task, passages in by_task.items():
            online = online_ratio([next(scores) for _ in passages], task)
            offline = figures[column].get(task)
            yield f"{column.path:12} {column.head:6} {task:9} online {_spelt(online)}  rescored {_spelt(offline)}"
    engine.stop(0.0)


def _spelt(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _rescored(evaluation: Path, precision: str) -> dict[PathHead, dict[str, Figure]]:
    """`rescored_nats_ratio` by path, head and task. Raises: ConfigError for a file that is not an evaluation's."""
    try:
        points = json.loads(evaluation.read_text(encoding="utf-8"))["points"]
        return {
            PathHead(point["path"], point["head"]): dict(_figures_of(point["figures"]))
            for point in points
            if point["precision"] == precision
        }
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{evaluation} is not what `fenhe eval --json` writes: {error!r}") from error


def _figures_of(figures: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, Figure]]:
    name = "rescored_nats_ratio"
    for task, found in figures.items():
        value, intervals, rows = found[name], found["intervals"], found["rows"]
        if isinstance(value, float) and isinstance(intervals, dict) and isinstance(rows, dict):
            low, high = intervals[name]
            yield task, Figure(value=value, low=low, high=high, rows=rows[name])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engines.evaluation.online", description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("evaluation", type=Path, help="what `fenhe eval --json` wrote; its answers lie beside it")
    parser.add_argument("--precision", default="w8a8-native")
    parser.add_argument("--native-folder", type=Path, help="where fenhe's own operators are")
    parser.add_argument("--path", action="append", help="only this path; may be repeated")
    options = parser.parse_args(arguments)
    config = EvalConfig(
        native_folder=options.native_folder, answers_file=options.evaluation.with_suffix(".answers.jsonl")
    )
    try:
        for line in lines_of(Student.open(options.student), options.evaluation, config, options.precision):
            if options.path is None or line.split()[0] in options.path:
                print(line, flush=True)
    except ConfigError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
