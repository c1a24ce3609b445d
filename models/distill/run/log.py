"""The log of a training run: a JSON line every few steps, from which the report draws its curves."""

from pathlib import Path
from typing import Any

import msgspec

from models.file_writing import write_whole


class _Place(msgspec.Struct, frozen=True):
    step: int
    num_tokens: int


def append_line(file: Path, line: dict[str, Any]) -> None:
    """Write one JSON object; it must have the keys `step` and `num_tokens`, which `forget_after` reads."""
    with file.open("ab") as log:
        log.write(msgspec.json.encode(line) + b"\n")


def forget_after(file: Path, step: int, num_tokens: int) -> None:
    """Keep only what was logged up to this step: a run that was killed had gone beyond its last checkpoint.

    A last line that the kill left incomplete is removed too.
    """
    if not file.exists():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_up_to(line, step, num_tokens)]
    if len(kept) == len(lines):
        return
    write_whole(file, b"".join(kept))


def _is_up_to(line: bytes, step: int, num_tokens: int) -> bool:
    try:
        place = msgspec.json.decode(line, type=_Place)
    except msgspec.DecodeError:
        return False
    return line.endswith(b"\n") and (place.step, place.num_tokens) <= (step, num_tokens)
