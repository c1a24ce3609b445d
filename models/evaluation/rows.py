"""What is scored: rows of prompt and answer, and their tokens as `fenhe serve` would make them."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from models.errors import ConfigError
from models.evaluation.distractors import wrong_numbers
from models.evaluation.json_lines import parsed_lines
from models.tokenizer import Tokenizer

NUMBER_MARK = "####"
NUMBER_REQUEST = "\nAnswer with the number only."
REWORDINGS = ("Answer this quiz question in a few words.\n{}", "Question: {}\nAnswer:")
"""Further wordings of a question with choices: whether a small model chooses right depends on how it is asked."""
OWN_WORDS = "heldout"
"""The dataset of what the full path itself wrote to prompts that no path was trained on."""


class JsonRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an evaluation file; other keys (source, licence) are ignored."""

    task: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class Row:
    """One prompt with its reference answer.

    With `wrong` there is a choice as well: the answer begins with `given` and continues with `right`, where each of
    `wrong` would be possible too. That choice is then made once more for each of `rewordings`, in place of the prompt.
    """

    dataset: str
    task: str
    prompt: str
    answer: str
    given: str = ""
    right: str = ""
    wrong: tuple[str, ...] = ()
    rewordings: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class Passage:
    """A row in tokens. The answer begins at `boundary`.

    `branches` are the wrong continuations, which leave the text at `branch`; the right one in their place is the text
    up to `branch_end`. `other_question` is another row's prompt, after which this answer is scored too (empty: not).
    `rewordings` are the same answer and branches behind the question in other words.
    """

    dataset: str
    task: str
    token_ids: tuple[int, ...]
    boundary: int
    branch: int = 0
    branch_end: int = 0
    branches: tuple[tuple[int, ...], ...] = ()
    other_question: tuple[int, ...] = ()
    rewordings: tuple["Passage", ...] = ()

    @property
    def question(self) -> tuple[int, ...]:
        return self.token_ids[: self.boundary]

    @property
    def answer(self) -> tuple[int, ...]:
        return self.token_ids[self.boundary :]

    @property
    def num_answer_tokens(self) -> int:
        return len(self.token_ids) - self.boundary


def read_file(file: Path, dataset: str, limit: int | None = None) -> list[Row]:
    """The first `limit` rows of every task. Raises: ConfigError that names the file and the line."""
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    for row in _read_rows(file, dataset):
        counts[row.task] += 1
        if limit is None or counts[row.task] <= limit:
            rows.append(row)
    if not rows:
        raise ConfigError(f"{file} has no rows; every line is {{task, prompt, answer}}")
    return rows


def _read_rows(file: Path, dataset: str) -> Iterator[Row]:
    for where, parsed in parsed_lines(file, JsonRow, "{task, prompt, answer}, perhaps with choices"):
        if not parsed.prompt or not parsed.answer:
            raise ConfigError(f"{where}: the prompt and the answer must have text")
        yield row_of(parsed, dataset)


def row_of(parsed: JsonRow, dataset: str) -> Row:
    """Decide from what a row holds how it is scored: choices, a worked answer with `#### 18`, a number, or text."""
    if parsed.choices:
        wrong = tuple(choice for choice in dict.fromkeys(parsed.choices) if choice != parsed.answer)
        rewordings = tuple(wording.format(parsed.prompt) for wording in REWORDINGS)
        return replace(_chosen(parsed, dataset, parsed.answer, wrong), rewordings=rewordings)
    if NUMBER_MARK in parsed.answer:
        return _worked(parsed, dataset)
    plain = plain_number(parsed.answer)
    if plain is not None:
        asked = msgspec.structs.replace(parsed, prompt=parsed.prompt + NUMBER_REQUEST)
        return _chosen(asked, dataset, plain, wrong_numbers(parsed.prompt, plain))
    return Row(dataset=dataset, task=parsed.task, prompt=parsed.prompt, answer=parsed.answer)


def _chosen(parsed: JsonRow, dataset: str, answer: str, wrong: tuple[str, ...]) -> Row:
    return Row(dataset=dataset, task=parsed.task, prompt=parsed.prompt, answer=answer, right=answer, wrong=wrong)


def _worked(parsed: JsonRow, dataset: str) -> Row:
    """The choice is where the result is first worked out: after the mark every path could copy it from above."""
    answer = parsed.answer
    plain = plain_number(answer.rpartition(NUMBER_MARK)[2])
    found = None if plain is None else re.search(rf"=\s*\$?({re.escape(plain)})(?![\d.,]*\d)", answer)
    if found is None or plain is None:
        return Row(dataset=dataset, task=parsed.task, prompt=parsed.prompt, answer=answer)
    given = answer[: found.start(1)]
    return Row(
        dataset=dataset,
        task=parsed.task,
        prompt=parsed.prompt,
        answer=answer,
        given=given,
        right=plain,
        wrong=wrong_numbers(given.rpartition("\n")[2], plain),
    )


def plain_number(text: str) -> str | None:
    """`45.0` and ` 1,200` as `45` and `1200`; None for anything else."""
    try:
        value = float(text.strip().replace(",", ""))
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else f"{value:g}"


def passage_of(row: Row, tokenizer: Tokenizer, max_tokens: int) -> Passage | None:
    """The row in tokens: the prompt as a user's message, the answer as the reply, cut at `max_tokens`.

    None when the prompt leaves no room for an answer. A choice that does not fit is left out, with its rewordings, and
    so is a rewording in which it does not fit.
    """
    prompt = prompt_ids(row.prompt, tokenizer)
    answer = tokenizer.encode(row.answer, parse_special=False)
    room = max_tokens - len(prompt)
    if room < 1 or not answer or not prompt:
        return None
    right = tokenizer.encode(row.given + row.right, parse_special=False)
    wrong = [tokenizer.encode(row.given + text, parse_special=False) for text in row.wrong]
    plain = Passage(dataset=row.dataset, task=row.task, token_ids=(*prompt, *answer[:room]), boundary=len(prompt))
    # A tokenizer may encode the end of the right continuation differently when more text follows.
    if not wrong or answer[: len(right)] != right or max(map(len, (right, *wrong))) > room:
        return plain
    shared = _shared(right, *wrong)
    reworded = (
        passage_of(replace(row, prompt=prompt, rewordings=()), tokenizer, max_tokens) for prompt in row.rewordings
    )
    return replace(
        plain,
        branch=len(prompt) + shared,
        branch_end=len(prompt) + len(right),
        branches=tuple(tuple(ids[shared:]) for ids in wrong),
        rewordings=tuple(passage for passage in reworded if passage is not None and passage.branches),
    )


def prompt_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens that a chat request of this one message begins with."""
    return tokenizer.encode(prompt_text(prompt, tokenizer), add_special=tokenizer.chat_template is None)


def prompt_text(prompt: str, tokenizer: Tokenizer) -> str:
    """What a chat request of this one message is rendered to; the text itself without a chat template."""
    if tokenizer.chat_template is None:
        return prompt
    return tokenizer.chat_template.render([{"role": "user", "content": prompt}])


def _shared(*candidates: list[int]) -> int:
    """How many tokens all candidates begin with, leaving at least one of each to distinguish it."""
    same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*candidates, strict=False))
    return min(sum(1 for _ in same), min(map(len, candidates)) - 1)
