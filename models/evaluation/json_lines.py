"""Reading JSON lines: every mistake names the file and the line."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from models.errors import ConfigError

T = TypeVar("T")


def raw_lines(file: Path, purpose: str = "rows to score") -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers. Raises: ConfigError, with what the file is for."""
    try:
        with file.open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; name a JSONL file of {purpose}") from error


def parsed_lines(file: Path, kind: type[T], form: str, purpose: str = "rows to score") -> Iterator[tuple[str, T]]:
    """Every line as a `kind`, with its place. Raises: ConfigError, with the form that a line should have."""
    for number, line in raw_lines(file, purpose):
        where = f"{file}:{number}"
        try:
            parsed = msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{where}: {error}; a row is {form}") from error
        yield where, parsed
