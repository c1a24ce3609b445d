"""Measured speeds of a student's variants on one machine: a file beside the manifest."""

from pathlib import Path

import msgspec

from models.bounds import Seconds
from models.file_writing import write_whole

SPEEDS_NAME = "speeds.json"


class Speeds(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds on the shortest path with the exact head: a decode step by number of rows, and a prompt token.

    `exact_head_s` and `cheap_head_s` are the heads alone by number of rows, where the variant has a cheap one.
    """

    decode_step_s: dict[int, Seconds]
    prefill_token_s: Seconds
    exact_head_s: dict[int, Seconds] = {}
    cheap_head_s: dict[int, Seconds] = {}

    def decode_token_s(self, num_rows: int) -> float:
        """Per token at the measured row count nearest to `num_rows`."""
        nearest = min(self.decode_step_s, key=lambda measured: abs(measured - num_rows))
        return self.decode_step_s[nearest] / nearest


class SpeedFile(msgspec.Struct, frozen=True, kw_only=True):
    """Speeds hold for one machine, one thread count and one ONNX Runtime, all named in `machine`."""

    machine: str
    variants: dict[str, Speeds]


def read_speeds(folder: Path) -> SpeedFile | None:
    """The speeds kept in a student folder; None when there are none that can be read."""
    try:
        return msgspec.json.decode((folder / SPEEDS_NAME).read_bytes(), type=SpeedFile)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None


def write_speeds(folder: Path, speeds: SpeedFile) -> None:
    """Raises: OSError where the folder cannot be written."""
    write_whole(folder / SPEEDS_NAME, msgspec.json.format(msgspec.json.encode(speeds)))
