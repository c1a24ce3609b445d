"""Answers written by the teacher, kept in a file as they arrive: a run that was killed asks only for the rest.

No torch: anything that can continue prompts is an `Answerer`; `fenhe distill` passes in an engine.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from models.distill.data.answer_file import AnswerFile, Entry
from models.distill.data.examples import encode_prompt
from models.distill.data.rows import Row
from models.errors import ConfigError, StepFailed
from models.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with how many answers have arrived and how many there will be."""


class Answerer(Protocol):
    """Something that can continue prompts."""

    def answer(
        self, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(index of the prompt, ids of its answer), in any order, each prompt once.

        A complete answer has its end token as the last id; one without was cut at `max_tokens`.
        """
        ...


@dataclass(slots=True, kw_only=True, frozen=True)
class LabelSettings:
    """`share_of_answered`: of the rows that have an answer, how many get the teacher's in its place."""

    share_of_answered: float = 0.0
    max_tokens: int = 256
    max_prompt_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises: ConfigError."""
        if not 0.0 <= self.share_of_answered <= 1.0:
            raise ConfigError(f"share_of_answered = {self.share_of_answered}: give a share from 0 to 1")
        if self.max_tokens < 1 or self.max_prompt_tokens < 1:
            raise ConfigError("max_tokens and max_prompt_tokens of the teacher's answers must be at least 1")
        if self.temperature < 0.0 or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(
                f"temperature = {self.temperature}, top_p = {self.top_p}: the temperature is 0 (greedy) or above, "
                "top_p above 0 and at most 1"
            )


@dataclass(slots=True, kw_only=True, frozen=True)
class Labelled:
    """`rows` are in the order they were given in. Units: rows, of those that were to be answered by the teacher."""

    rows: list[Row]
    num_asked: int
    num_found_in_file: int
    num_too_long: int
    num_without_answer: int


@dataclass(slots=True, kw_only=True, frozen=True)
class _Question:
    key: str
    row: Row
    prompt_ids: tuple[int, ...]


def label(
    rows: Sequence[Row],
    answerer: Answerer,
    tokenizer: Tokenizer,
    file: Path,
    settings: LabelSettings | None = None,
    *,
    teacher: str,
    progress: Progress | None = None,
) -> Labelled:
    """Let the teacher answer the rows without an answer, and the share of the others that the settings give.

    Answers are kept in `file` and found there again. `teacher` identifies its weights: what another teacher answered,
    or this one under other settings, is not used.
    Rows too long to be asked, or answered with nothing, keep the answer they had; those that had none are left out.
    Raises: ConfigError for a damaged file, StepFailed when the teacher stops early; what it wrote is kept.
    """
    settings = settings or LabelSettings()
    questions = [_question(row, tokenizer, settings, teacher) if is_wanted(row, settings) else None for row in rows]
    fitting = {q.key: q for q in questions if q is not None and len(q.prompt_ids) <= settings.max_prompt_tokens}
    with AnswerFile(file) as answers:
        missing = [question for key, question in fitting.items() if key not in answers.entries]
        if missing:
            _ask(missing, answerer, tokenizer, answers, settings, progress)
        return _labelled(rows, questions, {key: answers.entries[key] for key in fitting}, len(missing))


def is_wanted(row: Row, settings: LabelSettings) -> bool:
    """Whether the teacher is to answer the row."""
    if row.answer is None:
        return True
    return int(_digest(f"{settings.seed}/{row.prompt}")[:13], 16) / 16**13 < settings.share_of_answered


def _question(row: Row, tokenizer: Tokenizer, settings: LabelSettings, teacher: str) -> _Question:
    prompt_ids = encode_prompt(row.prompt, tokenizer)
    asked = (teacher, prompt_ids, settings.max_tokens, settings.temperature, settings.top_p, settings.seed)
    return _Question(key=_digest(repr(asked))[:32], row=row, prompt_ids=prompt_ids)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _ask(
    questions: Sequence[_Question],
    answerer: Answerer,
    tokenizer: Tokenizer,
    file: AnswerFile,
    settings: LabelSettings,
    progress: Progress | None,
) -> None:
    logger.info("teacher asked prompts=%d file=%s", len(questions), file.path)
    answers = answerer.answer(
        [question.prompt_ids for question in questions],
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    for done, (index, ids) in enumerate(answers, start=1):
        file.append(_entry(questions[index], ids, tokenizer))
        if progress is not None:
            progress(done, len(questions))
    if left := sum(question.key not in file.entries for question in questions):
        raise StepFailed(
            f"the teacher left {left} of {len(questions)} prompts unanswered; what it wrote is kept in {file.path}: "
            "run again to ask for the rest"
        )


def _entry(question: _Question, ids: tuple[int, ...], tokenizer: Tokenizer) -> Entry:
    is_complete = bool(ids) and ids[-1] in tokenizer.eos_token_ids
    row = question.row
    return Entry(
        key=question.key,
        task=row.task,
        prompt=row.prompt,
        answer=tokenizer.decode(ids[:-1] if is_complete else ids).strip(),
        is_complete=is_complete,
        source=row.source,
        licence=row.licence,
    )


def _labelled(
    rows: Sequence[Row], questions: Sequence[_Question | None], entries: dict[str, Entry], num_asked: int
) -> Labelled:
    answered, num_too_long, num_without_answer = list[Row](), 0, 0
    for row, question in zip(rows, questions, strict=True):
        entry = None if question is None else entries.get(question.key)
        if entry is not None and entry.answer:
            answered.append(replace(row, answer=entry.answer, is_complete=entry.is_complete))
            continue
        num_too_long += question is not None and entry is None
        num_without_answer += entry is not None
        if row.answer is not None:
            answered.append(row)
    return Labelled(
        rows=answered,
        num_asked=num_asked,
        num_found_in_file=len(entries) - num_asked,
        num_too_long=num_too_long,
        num_without_answer=num_without_answer,
    )
