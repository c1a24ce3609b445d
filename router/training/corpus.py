"""The rows the classifier learns from: files of real requests, prompts drawn from the grammars, and their weights."""

import codecs
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import ConfigError
from router.training.grammar import Grammar, draw_texts

LABELS = ("math", "legal", "fact", "creative", "other")
"""What a row may be labelled with; `other` is none of the four, and is routed as `general`."""

WRITTEN = "written"
"""The source of rows drawn from grammars is `written:STYLE`."""

WRITTEN_SHARE = 0.8
"""Of the weight of a class in a language, the part of written rows. Source: with sources left out, 0.5 was worse."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    label: str
    lang: str
    source: str = "unnamed"
    licence: str = "unknown"

    @property
    def is_written(self) -> bool:
        return self.source.startswith(f"{WRITTEN}:")


@dataclass(slots=True, kw_only=True, frozen=True)
class Group:
    """Rows that are weighted together: one label and language of one source."""

    label: str
    lang: str
    source: str


def group_of(row: Row) -> Group:
    return Group(label=row.label, lang=row.lang, source=row.source)


def read_rows(file: Path) -> list[Row]:
    """Read JSON lines with `text`, `label`, `lang` and, if it is there, `source` and `licence`.

    Raises: ConfigError that names the file and the line.
    """
    decoder = msgspec.json.Decoder(Row)
    rows = []
    try:
        lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_decode(decoder, line, file, number))
    if not rows:
        raise ConfigError(f"{file} has no rows")
    return rows


def _decode(decoder: "msgspec.json.Decoder[Row]", line: bytes, file: Path, number: int) -> Row:
    try:
        row = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}, line {number}: {error}") from error
    if row.label not in LABELS:
        listed = ", ".join(LABELS)
        raise ConfigError(f"{file}, line {number}: the label {row.label!r} is none of {listed}; `other` is for general")
    return row


def written_rows(grammars: Iterable[Grammar], seed: int) -> list[Row]:
    """Every text the grammars give with this seed."""
    rows = []
    for grammar in grammars:
        rng = random.Random(f"{seed} {grammar.lang} {grammar.label} {grammar.name}")
        for style in grammar.styles:
            source = f"{WRITTEN}:{style.name}"
            rows += [
                Row(text=text, label=grammar.label, lang=grammar.lang, source=source, licence="Apache-2.0")
                for text in draw_texts(grammar, style, rng)
            ]
    return rows


def row_weights(rows: Sequence[Row]) -> npt.NDArray[np.float32]:
    """A weight per row, 1 on average: every class of every language counts alike, however many rows it has.

    Within one, written rows have `WRITTEN_SHARE`; sources count by the root of their size.
    """
    groups = [group_of(row) for row in rows]
    sizes = Counter(groups)
    kinds: dict[tuple[str, str], dict[bool, float]] = defaultdict(lambda: defaultdict(float))
    is_written = {group_of(row): row.is_written for row in rows}
    for group, size in sizes.items():
        kinds[group.label, group.lang][is_written[group]] += size**0.5
    weights = [_share(kinds[group.label, group.lang], is_written[group]) / sizes[group] ** 0.5 for group in groups]
    return np.array(weights, np.float32) * np.float32(len(rows) / len(kinds))


def _share(kinds: dict[bool, float], is_written: bool) -> float:
    if len(kinds) == 1:
        return 1.0 / kinds[is_written]
    return (WRITTEN_SHARE if is_written else 1.0 - WRITTEN_SHARE) / kinds[is_written]
