"""Normed states that a student's paths end in, over whole texts, in the basis of the model itself: what a cheap head is
fitted to."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from engines.evaluation.scorer import PathRuns
from models.errors import ConfigError
from models.evaluation.json_lines import parsed_lines
from models.evaluation.rows import prompt_ids
from models.graphs.rotate import FINAL_NORM, rotation
from models.sources.source import ModelSource
from models.student.manifest import Manifest
from models.tokenizer import Tokenizer

Float = npt.NDArray[np.float32]


class TextRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the data: a prompt with its answer, or plain text; other keys are ignored."""

    task: str = ""
    prompt: str = ""
    answer: str = ""
    text: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class Text:
    """The states that predict the tokens from `boundary` on are wanted. `task` is empty where none is known."""

    task: str
    token_ids: tuple[int, ...]
    boundary: int


def read_texts(files: Sequence[Path], tokenizer: Tokenizer, *, max_tokens: int, seed: int) -> list[Text]:
    """The rows of every file in random order, the files in turn, each row cut at `max_tokens`.

    Raises: ConfigError that names the file and the line.
    """
    shuffled = []
    for file in files:
        rows = list(_read_rows(file))
        random.Random(seed).shuffle(rows)
        shuffled.append(rows)
    in_turn = (row for turn in zip_longest(*shuffled) for row in turn if row is not None)
    texts = (_text_of(row, tokenizer, max_tokens) for row in in_turn)
    return [text for text in texts if len(text.token_ids) > text.boundary]


def _read_rows(file: Path) -> Iterator[TextRow]:
    for where, row in parsed_lines(file, TextRow, "{prompt, answer} or {text}", "texts"):
        if not row.text and not (row.prompt and row.answer):
            raise ConfigError(f"{where}: a row needs a prompt and an answer, or a text")
        yield row


def _text_of(row: TextRow, tokenizer: Tokenizer, max_tokens: int) -> Text:
    if row.text:
        token_ids = tokenizer.encode(row.text, parse_special=False)[:max_tokens]
        return Text(task="", token_ids=tuple(token_ids), boundary=1)
    prompt = prompt_ids(row.prompt, tokenizer)
    answer = tokenizer.encode(row.answer, parse_special=False)
    return Text(task=row.task, token_ids=(*prompt, *answer)[:max_tokens], boundary=len(prompt))


def model_states(normed: Float, source: ModelSource, *, is_rotated: bool) -> Float:
    """States as the model's own head reads them; a rotated student's norms leave out their weight.

    Shapes: normed and result [positions, hidden_size].
    """
    if not is_rotated:
        return normed
    turned = normed @ rotation(source.architecture.hidden_size).T
    return np.asarray(turned * source.read(FINAL_NORM), np.float32)


def collect_states(runs: PathRuns, manifest: Manifest, texts: Iterable[Text], num_positions: int) -> Float:
    """States at the wanted positions of the texts, until there are enough: of the full path, and of the other paths
    that a text's task may take.

    Shapes: returns [positions, hidden_size], at most `num_positions` of them.
    Raises: ConfigError without any text.
    """
    found: list[Float] = []
    left = num_positions
    for text in texts:
        normed = runs.normed(text.token_ids, first=text.boundary - 1)
        taken = [normed[path][:-1] for path in paths_for(manifest, text.task) if path in normed]
        states = np.concatenate(taken)[:left]
        found.append(states)
        left -= len(states)
        if not left:
            break
    if not found:
        raise ConfigError("there is no text to fit to; name other files with --data")
    return np.concatenate(found)


def paths_for(manifest: Manifest, task: str) -> list[str]:
    """The path that the manifest names for a task, and all deeper ones; the full path alone without a task."""
    names = [path.name for path in manifest.paths_by_depth]
    shallowest = manifest.tasks.get(task, manifest.full_path.name)
    return names[names.index(shallowest) :]
