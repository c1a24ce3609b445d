"""Everything that a path is measured on, read from JSON lines: rows with answers, plain human text, pairs of sentences.

What a file holds shows in its first line: `{task, prompt, answer}`, `{task, text}`, or `{set, good, bad}`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from models.errors import ConfigError
from models.evaluation.json_lines import parsed_lines, raw_lines
from models.evaluation.rows import Row, read_file
from models.tokenizer import Tokenizer

EVAL_PREFIX = "eval_"
GENERAL = "general"
"""The task whose plain text stands for text of any kind, in every task."""
TEXT_START = "<|endoftext|>"

T = TypeVar("T")
L = TypeVar("L", bound="_Line")


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an evaluation file; other keys (source, licence) are ignored."""


class PlainText(_Line, frozen=True, kw_only=True):
    """Human text of a task, outside the chat template."""

    task: str
    text: str


class Pair(_Line, frozen=True, kw_only=True):
    """A sentence and a wrong one that differs from it in one point of grammar, which `set` names."""

    set: str
    good: str
    bad: str


class Prompt(_Line, frozen=True, kw_only=True):
    """What the full path writes an answer to."""

    task: str
    prompt: str


@dataclass(slots=True, kw_only=True, frozen=True)
class Texts:
    """What is scored; to `prompts` the full path writes answers first, which are scored too."""

    rows: tuple[Row, ...] = ()
    plain: tuple[PlainText, ...] = ()
    pairs: tuple[Pair, ...] = ()
    prompts: tuple[Prompt, ...] = ()


def read_texts(places: Sequence[Path], limit: int | None = None) -> Texts:
    """The `eval_*.jsonl` files of folders, and files named themselves; `limit` rows of every task of each file, and as
    many pairs, spread evenly over the file.

    Raises: ConfigError for a place without such files, or a line that cannot be read.
    """
    rows, plain, pairs = list[Row](), list[PlainText](), list[Pair]()
    for file in _files(places):
        keys = _first_keys(file)
        if "good" in keys:
            found = list(_lines(file, Pair, "{set, good, bad}"))
            pairs += found if limit is None else spread(found, limit)
        elif "text" in keys:
            plain += _limited(_lines(file, PlainText, "{task, text}"), limit)
        else:
            rows += read_file(file, file.stem.removeprefix(EVAL_PREFIX), limit)
    return Texts(rows=tuple(rows), plain=tuple(plain), pairs=tuple(pairs))


def read_prompts(file: Path) -> list[Prompt]:
    """Prompts to answer; other keys, an answer among them, are ignored. Raises: ConfigError that names the line."""
    return list(_lines(file, Prompt, "{task, prompt}"))


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, or all where there are fewer, evenly spaced."""
    num_taken = min(count, len(items))
    return [items[index * len(items) // num_taken] for index in range(num_taken)]


def plain_ids(text: str, tokenizer: Tokenizer, max_tokens: int) -> tuple[int, ...]:
    """The text in tokens as it stands, cut at `max_tokens`, behind what begins a text for the model.

    That is what the tokenizer puts before a raw prompt, else the mark between texts where the vocabulary has one: the
    first token of a text is predicted from it. Without either the first token is not scored.
    """
    start = tokenizer.encode("", add_special=True) or _text_start(tokenizer)
    return tuple([*start[:1], *tokenizer.encode(text, parse_special=False)][:max_tokens])


def _text_start(tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(TEXT_START)
    return ids if len(ids) == 1 else []


def _files(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if not place.is_dir():
            yield place
            continue
        found = sorted(place.glob(f"{EVAL_PREFIX}*.jsonl"))
        if not found:
            raise ConfigError(f"{place} has no {EVAL_PREFIX}*.jsonl; name a folder that has, or the files themselves")
        yield from found


def _first_keys(file: Path) -> set[str]:
    """Empty where the first line is no JSON object: whoever reads the file says what is wrong with it."""
    for _, line in raw_lines(file):
        try:
            return set(msgspec.json.decode(line, type=dict[str, object]))
        except msgspec.DecodeError:
            break
    return set()


def _lines(file: Path, kind: type[L], form: str) -> Iterator[L]:
    is_empty = True
    for where, parsed in parsed_lines(file, kind, form):
        is_empty = False
        if not all(text.strip() for text in msgspec.structs.astuple(parsed)):
            raise ConfigError(f"{where}: every part of {form} must have text")
        yield parsed
    if is_empty:
        raise ConfigError(f"{file} has no rows; every line is {form}")


def _limited(texts: Iterator[PlainText], limit: int | None) -> Iterator[PlainText]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts[text.task] += 1
        if limit is None or counts[text.task] <= limit:
            yield text
