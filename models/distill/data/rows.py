"""Training rows: read from JSON lines, and filtered. No torch, no tokens; those are in `examples.py`.

Files for evaluation (`eval_*`) are never read as training data.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from models.errors import ConfigError

EVALUATION_PREFIX = "eval_"

Tally = Counter[tuple[str, str]]
"""How many rows were left out: (task, reason) -> rows."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, frozen=True)
class Row:
    """One prompt. `answer` None: not answered yet. `is_complete` False: the answer was cut short."""

    task: str
    prompt: str
    answer: str | None = None
    source: str
    licence: str = ""
    is_complete: bool = True


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line; other keys are ignored."""

    task: str
    prompt: str
    answer: str | None = None
    source: str | None = None
    licence: str = ""
    is_complete: bool = True


_DECODER = msgspec.json.Decoder(_Line)

T = TypeVar("T")


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """Rows of files, and of every *.jsonl of folders, in that order.

    Raises: ConfigError that names the file and line.
    """
    return [row for path in paths for file in _training_files(path) for row in _rows_of(file)]


def evaluation_files(paths: Iterable[Path], named: Iterable[Path] = ()) -> list[Path]:
    """What a student is measured on: the `eval_*` files in folders and beside files, the files that are `named`, and
    those in folders that are; each once.

    Raises: ConfigError for a named place without such files.
    """
    folders = [path if path.is_dir() else path.absolute().parent for path in paths]
    found = [file for folder in folders for file in _evaluation_files_in(folder)]
    for place in named:
        files = _evaluation_files_in(place) if place.is_dir() else [place]
        if not files or not files[0].is_file():
            raise ConfigError(
                f"text.evaluation: {place} is neither a file nor a folder with {EVALUATION_PREFIX}*.jsonl files"
            )
        found += files
    return list({file.resolve(): file for file in found}.values())


def _evaluation_files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{EVALUATION_PREFIX}*.jsonl"))


def read_prompts(files: Iterable[Path]) -> list[str]:
    """Prompts of evaluation files, for `deduplicate(against=...)` only: never to be trained on.

    Files of plain text and of pairs of sentences have none.
    """
    return [row.prompt for file in files if not _has_no_prompts(file) for row in _rows_of(file)]


def _has_no_prompts(file: Path) -> bool:
    """Whether the first line is plain text or a pair of sentences; a damaged line is left to whoever reads all."""
    with file.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        keys = set(msgspec.json.decode(first.removeprefix(b"\xef\xbb\xbf"), type=dict[str, object]))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return "prompt" not in keys and bool(keys & {"text", "good"})


def _training_files(path: Path) -> list[Path]:
    if path.is_dir():
        return _files_in(path)
    if not path.is_file():
        raise ConfigError(f"training data: {path} does not exist; give a JSON-lines file or a folder of them")
    if path.name.startswith(EVALUATION_PREFIX):
        raise ConfigError(
            f"training data: {path} is for evaluation (its name begins with {EVALUATION_PREFIX!r}); a student trained "
            "on it could not be measured with it. Leave it out, or rename it if it is not an evaluation set"
        )
    return [path]


def _files_in(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.jsonl"))
    training = [file for file in found if not file.name.startswith(EVALUATION_PREFIX)]
    files = [file for file in training if not _has_no_prompts(file)]
    if not files:
        raise ConfigError(
            f"training data: {folder} has no *.jsonl file to train on (eval_* files and plain text do not count)"
        )
    if skipped := [file.name for file in found if file not in training]:
        logger.info("evaluation files skipped folder=%s files=%s", folder, ",".join(skipped))
    if plain := [file.name for file in training if file not in files]:
        logger.info("plain text skipped folder=%s files=%s; `widths.plain` names it", folder, ",".join(plain))
    return files


def _rows_of(file: Path) -> Iterator[Row]:
    form = (
        'a row is one JSON object in UTF-8 such as {"task": "math", "prompt": "...", "answer": "..."}; fix or delete '
        "the line"
    )
    return (_row(read, file) for read in decoded_lines(file, _DECODER, form))


def decoded_lines(file: Path, decoder: msgspec.json.Decoder[T], form: str) -> Iterator[T]:
    """Every line that is not empty. Raises: ConfigError that names the file and line, with the form it should have."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                read = decoder.decode(line.removeprefix(b"\xef\xbb\xbf"))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file} line {number}: {error}; {form}") from error
            yield read


def _row(read: _Line, file: Path) -> Row:
    return Row(
        task=read.task,
        prompt=read.prompt,
        answer=read.answer,
        source=file.name if read.source is None else read.source,
        licence=read.licence,
        is_complete=read.is_complete,
    )


@dataclass(slots=True, kw_only=True, frozen=True)
class FilterLimits:
    """Units: characters. An answer that zlib shrinks below `min_compressed_share` repeats itself."""

    max_prompt_chars: int = 4000
    max_answer_chars: int = 8000
    min_compressed_share: float = 0.15


MIN_CHARS_TO_JUDGE_REPETITION = 200


def filter_rows(rows: Iterable[Row], limits: FilterLimits | None = None) -> tuple[list[Row], Tally]:
    """The rows worth training on, and how many were left out for which reason."""
    limits = limits or FilterLimits()
    kept, dropped = [], Tally()
    for row in rows:
        reason = _fault(row, limits)
        if reason is None:
            kept.append(row)
        else:
            dropped[row.task, reason] += 1
    return kept, dropped


def _fault(row: Row, limits: FilterLimits) -> str | None:
    prompt, answer = row.prompt.strip(), None if row.answer is None else row.answer.strip()
    if not prompt:
        return "empty prompt"
    if len(prompt) > limits.max_prompt_chars:
        return "prompt too long"
    if _is_damaged(prompt):
        return "damaged characters"
    return None if answer is None else _answer_fault(prompt, answer, limits)


def _answer_fault(prompt: str, answer: str, limits: FilterLimits) -> str | None:
    if not answer:
        return "empty answer"
    if len(answer) > limits.max_answer_chars:
        return "answer too long"
    if _is_damaged(answer):
        return "damaged characters"
    if answer.casefold() == prompt.casefold():
        return "answer equals prompt"
    return "repetitive answer" if _repeats_itself(answer, limits.min_compressed_share) else None


def _is_damaged(text: str) -> bool:
    """Control characters other than tab and line ends, U+FFFD of a failed decoding, and halves of surrogate pairs."""
    return any(_is_control(ord(character)) for character in text)


def _is_control(code: int) -> bool:
    is_c0_or_c1 = code < 0x20 or 0x7F <= code < 0xA0
    return (is_c0_or_c1 and code not in (0x09, 0x0A, 0x0D)) or code == 0xFFFD or 0xD800 <= code < 0xE000


def _repeats_itself(text: str, min_compressed_share: float) -> bool:
    raw = text.encode()
    return len(text) >= MIN_CHARS_TO_JUDGE_REPETITION and len(zlib.compress(raw)) < min_compressed_share * len(raw)
