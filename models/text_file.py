"""Text and JSON files that come with a model, as editors leave them: some write a byte order mark, or UTF-16."""

import codecs
from pathlib import Path
from typing import TypeVar

import msgspec

from models.errors import ConfigError

T = TypeVar("T")

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: Path) -> str:
    """The text of a file without its byte order mark. Raises: FileNotFoundError; ConfigError that names the file."""
    raw = file.read_bytes()
    try:
        return raw.decode("utf-16" if raw.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}; save it as UTF-8, or fetch it again"
        ) from None


def read_json(file: Path, kind: type[T]) -> T:
    """The value in a JSON file. Raises: FileNotFoundError; ConfigError that names the file and what is wrong in it."""
    try:
        return msgspec.json.decode(read_text(file), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
