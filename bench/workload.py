"""What is generated and scored: token ids from a held-out text, the same for every subject.

Prompts are windows of one long stream of tokens. Every window starts elsewhere, so that no prefix cache helps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from models.errors import ConfigError
from models.tokenizer import Tokenizer

DEFAULT_TEXT = Path(__file__).with_name("heldout.txt")
MAX_TEXT_TOKENS = 256
STRIDE = 17
"""Prime, so that windows start at the same token only after as many of them as the stream is long."""


class TextRow(msgspec.Struct, frozen=True):
    """A line of a JSONL file: a `text`, or a `prompt` with its `answer`. Other fields are ignored."""

    text: str | None = None
    prompt: str | None = None
    answer: str | None = None


@dataclass(slots=True, kw_only=True)
class Workload:
    """`texts` are scored one by one; `window` cuts prompts from all of them laid end to end, over and over."""

    texts: tuple[tuple[int, ...], ...]
    num_windows: int = 0

    def window(self, num_tokens: int) -> tuple[int, ...]:
        stream = [token for text in self.texts for token in text]
        start = self.num_windows * STRIDE % len(stream)
        self.num_windows += 1
        repeats = (start + num_tokens) // len(stream) + 1
        return tuple((stream * repeats)[start : start + num_tokens])

    def windows(self, count: int, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        return tuple(self.window(num_tokens) for _ in range(count))


def read_workload(file: Path, tokenizer: Tokenizer) -> Workload:
    """Texts longer than 256 tokens are cut, shorter than two are dropped.

    Raises: ConfigError for a file that holds no text.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {file} cannot be read: {error}") from error
    parts = _rows(file, content, tokenizer) if file.suffix == ".jsonl" else content.split("\n\n")
    texts = (tuple(tokenizer.encode(part.strip())[:MAX_TEXT_TOKENS]) for part in parts)
    long_enough = tuple(text for text in texts if len(text) > 1)
    if not long_enough:
        raise ConfigError(f"--text {file} holds no text: give paragraphs, or JSONL with text or prompt and answer")
    return Workload(texts=long_enough)


def _rows(file: Path, content: str, tokenizer: Tokenizer) -> Iterator[str]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = msgspec.json.decode(line, type=TextRow)
        except msgspec.DecodeError as error:
            raise ConfigError(f"--text {file}, line {number}: {error}") from error
        if row.text is not None:
            yield row.text
        elif row.prompt is not None:
            yield _dialogue(row.prompt, row.answer or "", tokenizer)
        else:
            raise ConfigError(f"--text {file}, line {number}: neither `text` nor `prompt`")


def _dialogue(prompt: str, answer: str, tokenizer: Tokenizer) -> str:
    """As the student's chat template writes it, or plainly where it has none."""
    if tokenizer.chat_template is None:
        return f"{prompt}\n{answer}"
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return tokenizer.chat_template.render(messages, add_generation_prompt=False)


def shorten(texts: Sequence[tuple[int, ...]], max_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The first texts, as many as fit into `max_tokens`, but at least one."""
    kept: list[tuple[int, ...]] = []
    for text in texts:
        if kept and sum(map(len, kept)) + len(text) > max_tokens:
            break
        kept.append(text)
    return tuple(kept)
