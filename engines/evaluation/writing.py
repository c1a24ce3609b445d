"""What paths write themselves: the full path's words, on which every path is measured, and every path's own answers.

An engine writes them, many at once, and a file keeps them: a run that finds them there asks for none again.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

from engines.answerer import EngineAnswerer
from engines.build import build_engine
from engines.evaluation.choices import EvalConfig, engine_config
from models.distill.data.examples import end_token
from models.distill.data.labels import LabelSettings, Progress, label
from models.distill.data.rows import Row as Asked
from models.evaluation.rows import OWN_WORDS, Passage, Row, passage_of
from models.evaluation.scores import PathHead
from models.evaluation.texts import Prompt, spread
from models.student.folder import Student
from models.tokenizer import Tokenizer

TEMPERATURE, TOP_P = 0.7, 0.95
MAX_ANSWER_TOKENS = 200
MAX_RUNNING = 32
"""Answers that are written at once."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Written:
    """An answer; `is_complete` False: it was cut short."""

    task: str
    prompt: str
    answer: str
    is_complete: bool


class Writer:
    """Asks the paths of a student at one precision; use it as a context manager. The engine starts when it is needed.

    Answers are a function of student, path, head, precision, prompt and settings: what is asked besides, and in which
    order, does not change them.
    """

    def __init__(
        self, student: Student, precision: str, config: EvalConfig, *, progress_s: float | None = None
    ) -> None:
        self._student = student
        self._precision = precision
        self._config = config
        self._progress_s = progress_s
        self._answerer: EngineAnswerer | None = None
        self._spare = tempfile.TemporaryDirectory(prefix="fenhe-eval-")
        self._capacity = min(config.max_text_tokens, student.manifest.architecture.max_context_tokens)
        max_tokens = min(MAX_ANSWER_TOKENS, self._capacity // 2)
        self._settings = LabelSettings(
            max_tokens=max_tokens,
            max_prompt_tokens=self._capacity - max_tokens,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=config.seed,
        )

    def own_words(self, prompts: Sequence[Prompt]) -> list[Row]:
        """The full path's answers to some prompts of every task, by the exact head, as rows to score."""
        chosen = spread_by_task(prompts, self._config.num_own_prompts)
        full = PathHead(self._student.manifest.full_path.name, "exact")
        written = self._written(chosen, full, self._config.own_words_file)
        return [Row(dataset=OWN_WORDS, task=one.task, prompt=one.prompt, answer=one.answer) for one in written]

    def answers(self, prompts: Sequence[Prompt], column: PathHead) -> list[Written]:
        """A path's own answers with one head; a prompt that is answered with nothing is left out."""
        return self._written(prompts, column, self._config.answers_file)

    def _written(self, prompts: Sequence[Prompt], column: PathHead, file: Path | None) -> list[Written]:
        rows = [Asked(task=prompt.task, prompt=prompt.prompt, source="fenhe eval") for prompt in prompts]
        name = f"{column.path}, {column.head} head"
        every_s = self._progress_s
        with tqdm(
            total=len(rows), desc=name, unit="answer", disable=every_s is None, mininterval=every_s or 0.1
        ) as bar:
            labelled = label(
                rows,
                _Asking(self, column),
                self._student.tokenizer,
                file or Path(self._spare.name) / "answers.jsonl",
                self._settings,
                teacher=self._identity(column),
                progress=_shown_by(bar),
            )
        return [
            Written(task=row.task, prompt=row.prompt, answer=row.answer, is_complete=row.is_complete)
            for row in labelled.rows
            if row.answer is not None
        ]

    def _identity(self, column: PathHead) -> str:
        """The full path with the exact head is the same whatever exits and heads the student has besides."""
        manifest = self._student.manifest
        cheap = "" if manifest.cheap_head is None or column.head == "exact" else manifest.cheap_head.sha256
        exits = "" if column.path == manifest.full_path.name else manifest.exits_sha256
        widths = [manifest.widths_sha256] if manifest.path(column.path).width else []
        return " ".join((manifest.source_sha256, self._precision, column.path, exits, column.head, cheap, *widths))

    def started(self) -> EngineAnswerer:
        """The engine, started when this is first asked for."""
        if self._answerer is None:
            manifest = self._student.manifest
            config = engine_config(
                self._config,
                self._precision,
                manifest.heads_at(self._precision),
                max_context_tokens=self._capacity,
                max_running=MAX_RUNNING,
            )
            engine = build_engine(self._student, config)
            answerer = EngineAnswerer(engine, manifest.full_path.name, self._student.tokenizer.eos_token_ids)
            self._answerer = answerer.__enter__()
        return self._answerer

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._answerer is not None:
            self._answerer.__exit__(kind, error, trace)
        self._spare.cleanup()


class _Asking:
    """One path with one head as something that answers prompts."""

    def __init__(self, writer: Writer, column: PathHead) -> None:
        self._writer = writer
        self._column = column

    def answer(
        self, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        answerer = self._writer.started().on(self._column.path, needs_exact_head=self._column.head == "exact")
        yield from answerer.answer(prompts, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


def _shown_by(bar: "tqdm[NoReturn]") -> Progress:
    def show(num_done: int, _: int) -> None:
        bar.update(num_done - bar.n)

    return show


def spread_by_task(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """`count` different prompts of every task, evenly spaced in the order given: files often go by source."""
    by_task: dict[str, dict[str, Prompt]] = {}
    for prompt in prompts:
        by_task.setdefault(prompt.task, {})[prompt.prompt] = prompt
    return [prompt for found in by_task.values() for prompt in spread(list(found.values()), count)]


def prompts_to_answer(rows: Sequence[Row], count: int) -> list[Prompt]:
    """Some of the prompts that the full path's own words answer, of every task."""
    own = (Prompt(task=row.task, prompt=row.prompt) for row in rows if row.dataset == OWN_WORDS)
    return spread_by_task(own, count)


def written_passage(written: Written, tokenizer: Tokenizer, max_tokens: int) -> Passage | None:
    """An answer to be scored, with the end token if it was not cut short. None where the prompt does not fit."""
    row = Row(dataset=OWN_WORDS, task=written.task, prompt=written.prompt, answer=written.answer)
    passage = passage_of(row, tokenizer, max_tokens - 1)
    if passage is None or not written.is_complete:
        return passage
    return Passage(
        dataset=passage.dataset,
        task=passage.task,
        token_ids=(*passage.token_ids, end_token(tokenizer)),
        boundary=passage.boundary,
    )
