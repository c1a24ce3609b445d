"""Prompts that the teacher writes: what else a user might have asked, sorted by task and freed of doubles.

A model that was trained on conversations continues the header of a user's turn with a prompt. Each begins here with the
first words of a known prompt of its task, so that tasks come out as they are wanted, and is sampled to its end token.
Source: Xu et al. 2024, Magpie (arXiv 2406.08464), section 2, which gives the header alone.

    header   <|im_start|>user\\n        from the chat template
    opening  Can a landlord             from a row of the task
    written   keep the deposit if the flat was left clean?<|im_end|>
"""

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.distill.data.answer_file import AnswerFile, Entry
from models.distill.data.deduplicate import deduplicate
from models.distill.data.labels import Answerer, Progress
from models.distill.data.rows import Row, Tally, filter_rows
from models.errors import ConfigError, StepFailed
from models.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SOURCE = "written by the teacher"
TRIES_PER_PROMPT = 3
"""How many are asked for in a round where one is missing: others are cut short, of another task, or doubles."""

Judge = Callable[[str], str]
"""The task of a prompt as a router sees it."""


@dataclass(slots=True, kw_only=True, frozen=True)
class PromptSettings:
    """`wanted`: how many new prompts of each task. `opening_words`: how many of a known prompt's first words one begins
    with. What is still missing after `rounds` is left out. `max_tokens` of a prompt, its opening apart."""

    wanted: Mapping[str, int] = field(default_factory=dict)
    opening_words: int = 3
    rounds: int = 4
    max_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 0.95
    seed: int = 0

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [
            f"prompts.wanted.{task} must not be negative, not {count}"
            for task, count in self.wanted.items()
            if count < 0
        ]
        found += [
            f"prompts.{name} must be at least 1, not {getattr(self, name)}"
            for name in ("opening_words", "rounds", "max_tokens")
            if getattr(self, name) < 1
        ]
        if not self.temperature > 0.0 or not 0.0 < self.top_p <= 1.0:
            found.append(
                f"prompts.temperature = {self.temperature}, prompts.top_p = {self.top_p}: the temperature is above 0, "
                "since new prompts are drawn, top_p above 0 and at most 1"
            )
        return found


@dataclass(slots=True, kw_only=True, frozen=True)
class WrittenPrompts:
    """`rows` have no answer yet. `left_out` counts what was written and not taken, by task and reason."""

    rows: list[Row]
    left_out: Tally


@dataclass(slots=True, kw_only=True, frozen=True)
class _Start:
    """What a prompt is continued from: the header and an opening of `task`, as text and as ids."""

    key: str
    task: str
    opening: str
    licence: str
    prompt_ids: tuple[int, ...]


def write_prompts(
    rows: Sequence[Row],
    answerer: Answerer,
    tokenizer: Tokenizer,
    file: Path,
    settings: PromptSettings,
    *,
    teacher: str,
    judge: Judge | None = None,
    avoided: Sequence[str] = (),
    progress: Progress | None = None,
) -> WrittenPrompts:
    """New prompts of the tasks of `rows`, none like another, one of `rows` or one that is `avoided`.

    What the teacher wrote is kept in `file` and found there again; `teacher` identifies its weights. The result is a
    function of the arguments alone, whether written in one run or in several.
    Raises: ConfigError for a task without rows, a model without a chat template, a damaged file; StepFailed when the
    teacher stops early.
    """
    header_ids = user_header(tokenizer)
    by_task = {task: [row for row in rows if row.task == task] for task, count in settings.wanted.items() if count}
    if empty := sorted(task for task, members in by_task.items() if not members):
        raise ConfigError(
            f"prompts.wanted.{empty[0]}: no training row is of that task, so there is nothing to begin with"
        )
    known = [*avoided, *(row.prompt for row in rows)]
    found, left_out = list[Row](), Tally()
    with AnswerFile(file) as written:
        for number in range(settings.rounds):
            missing = _missing(settings, found)
            if not missing:
                break
            starts = _starts(by_task, missing, header_ids, tokenizer, settings, teacher, number)
            _write(starts, answerer, tokenizer, written, settings, number, progress)
            fresh, bad = _sorted_out([written.entries[start.key] for start in starts], settings, judge)
            fresh, doubles = deduplicate(fresh, against=[*known, *(row.prompt for row in found)])
            left_out += bad + _as_doubles(doubles)
            found += _first_of_each(fresh, missing)
    logger.info("prompts written rows=%d left_out=%d file=%s", len(found), sum(left_out.values()), file)
    return WrittenPrompts(rows=found, left_out=left_out)


def user_header(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids of everything the chat template writes before a user's first words.

    Raises: ConfigError for a model without a chat template, or whose template changes the words.
    """
    mark = "\u2603"
    template = tokenizer.chat_template
    text = "" if template is None else template.render([{"role": "user", "content": mark}])
    if mark not in text:
        raise ConfigError(
            "prompts: the teacher has no chat template that a user's turn could be begun with; leave the table out"
        )
    return tuple(tokenizer.encode(text[: text.index(mark)]))


def _missing(settings: PromptSettings, found: Sequence[Row]) -> dict[str, int]:
    have = Counter(row.task for row in found)
    return {task: count - have[task] for task, count in settings.wanted.items() if count > have[task]}


def _starts(
    by_task: Mapping[str, Sequence[Row]],
    missing: Mapping[str, int],
    header_ids: tuple[int, ...],
    tokenizer: Tokenizer,
    settings: PromptSettings,
    teacher: str,
    number: int,
) -> list[_Start]:
    """Different openings, in an order that the round's number decides."""
    starts = dict[tuple[int, ...], _Start]()
    asked = (teacher, settings.max_tokens, settings.temperature, settings.top_p, settings.seed, number)
    for task, count in missing.items():
        members = list(by_task[task])
        random.Random(f"{settings.seed}/{number}/{task}").shuffle(members)
        size = len(starts) + count * TRIES_PER_PROMPT
        for row in members:
            opening = " ".join(row.prompt.split()[: settings.opening_words])
            ids = (*header_ids, *tokenizer.encode(opening, parse_special=False))
            key = hashlib.sha256(repr((asked, ids)).encode()).hexdigest()[:32]
            starts.setdefault(ids, _Start(key=key, task=task, opening=opening, licence=row.licence, prompt_ids=ids))
            if len(starts) == size:
                break
    return list(starts.values())


def _write(
    starts: Sequence[_Start],
    answerer: Answerer,
    tokenizer: Tokenizer,
    written: AnswerFile,
    settings: PromptSettings,
    number: int,
    progress: Progress | None,
) -> None:
    missing = [start for start in starts if start.key not in written.entries]
    if not missing:
        return
    answers = answerer.answer(
        [start.prompt_ids for start in missing],
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed + number,
    )
    for done, (index, ids) in enumerate(answers, start=1):
        written.append(_entry(missing[index], ids, tokenizer))
        if progress is not None:
            progress(done, len(missing))
    if left := sum(start.key not in written.entries for start in missing):
        raise StepFailed(f"the teacher left {left} of {len(missing)} prompts unwritten; run again to ask for the rest")


def _entry(start: _Start, ids: tuple[int, ...], tokenizer: Tokenizer) -> Entry:
    is_complete = bool(ids) and ids[-1] in tokenizer.eos_token_ids
    opening = tokenizer.encode(start.opening, parse_special=False)
    return Entry(
        key=start.key,
        task=start.task,
        prompt=tokenizer.decode([*opening, *(ids[:-1] if is_complete else ids)]).strip(),
        answer="",
        is_complete=is_complete,
        source=SOURCE,
        licence=start.licence,
    )


def _sorted_out(entries: Sequence[Entry], settings: PromptSettings, judge: Judge | None) -> tuple[list[Row], Tally]:
    """The prompts of the task they were begun for, or of another that is wanted."""
    rows, left_out = list[Row](), Tally()
    for entry in entries:
        task = judge(entry.prompt) if judge is not None and entry.is_complete else entry.task
        if not entry.is_complete:
            left_out[entry.task, "prompt cut short"] += 1
        elif task not in settings.wanted:
            left_out[entry.task, "prompt of another task"] += 1
        else:
            rows.append(Row(task=task, prompt=entry.prompt, source=entry.source, licence=entry.licence))
    kept, bad = filter_rows(rows)
    return kept, left_out + bad


def _as_doubles(dropped: Tally) -> Tally:
    """Every prompt that is dropped here resembles a known one, whichever file that lies in."""
    doubles = Tally()
    for (task, _), count in dropped.items():
        doubles[task, "prompt like a known one"] += count
    return doubles


def _first_of_each(rows: Sequence[Row], missing: Mapping[str, int]) -> list[Row]:
    taken = Counter[str]()
    kept = []
    for row in rows:
        if taken[row.task] < missing.get(row.task, 0):
            taken[row.task] += 1
            kept.append(row)
    return kept
