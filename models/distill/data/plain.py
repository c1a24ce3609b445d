"""Plain text outside the chat template: human prose, for calibration and training beside prompts and answers."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from models.distill.data.examples import Example
from models.distill.data.rows import decoded_lines
from models.errors import ConfigError
from models.tokenizer import Tokenizer

PIECE_TOKENS = 400
LEAST_TOKENS = 32
"""A shorter rest of a text is left out: most of its tokens would have little before them."""


class PlainText(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a file; its other keys are ignored."""

    task: str
    text: str
    source: str = ""


_DECODER = msgspec.json.Decoder(PlainText)


def read_plain(files: Iterable[Path]) -> list[PlainText]:
    """JSON lines of `task` and `text`; a text without a source has its file's name. Raises: ConfigError that names the
    file and line.
    """
    return [text for file in files for text in _texts_of(file)]


def _texts_of(file: Path) -> list[PlainText]:
    try:
        texts = list(decoded_lines(file, _DECODER, 'a line of plain text is {"task": "fact", "text": "..."}'))
    except OSError as error:
        raise ConfigError(f"widths.plain: {file} cannot be read: {error}; give a file of JSON lines") from error
    return [text if text.source else msgspec.structs.replace(text, source=file.name) for text in texts]


def encode_plain(texts: Sequence[PlainText], tokenizer: Tokenizer) -> list[Example]:
    """Texts in pieces of at most `PIECE_TOKENS`; every token of a piece but the first is predicted."""
    found = []
    for text in texts:
        ids = tokenizer.encode(text.text, parse_special=False)
        pieces = (ids[first : first + PIECE_TOKENS] for first in range(0, len(ids), PIECE_TOKENS))
        found += [
            Example(task=f"plain {text.task}", token_ids=tuple(piece), num_prompt_tokens=0, source=text.source)
            for piece in pieces
            if len(piece) >= LEAST_TOKENS
        ]
    return found
