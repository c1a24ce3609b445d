"""An embedding table whose rows are kept as a GGUF file has them, and read from the file when they are asked for.

Nothing of it stays in memory, and nothing is mapped: a file that was cut short meanwhile is an error with a name.
A header, then the rows one after the other.
"""

import os
import struct
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.errors import WeightsError
from models.sources.gguf_blocks import FLOAT_KINDS, is_exact, read_floats

Floats = npt.NDArray[np.float32]

MAGIC = b"FHROWS1\0"
_HEADER = struct.Struct("<8sqqqq")
HEADER_BYTES = 64


class EmbeddingTable(Protocol):
    """Rows by token id: a numpy array is one. Shapes: [vocab, hidden_size]."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, ids: list[int], /) -> Floats:
        """Shapes: returns [ids, hidden_size]."""
        ...


def can_keep(kind: int) -> bool:
    """Whether rows of this kind can be read again."""
    return kind in FLOAT_KINDS or is_exact(kind)


def table_header(kind: int, shape: tuple[int, int], row_bytes: int) -> bytes:
    """What stands before the rows, which follow in order."""
    return _HEADER.pack(MAGIC, kind, *shape, row_bytes).ljust(HEADER_BYTES, b"\0")


class RowTable:
    """An opened table."""

    def __init__(self, file: Path) -> None:
        """Raises: WeightsError for a file that is no table, or is cut short."""
        self._file = file
        self._descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        head = os.pread(self._descriptor, HEADER_BYTES, 0)
        if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
            raise WeightsError(f"{file} is no table of embeddings; build the student again with `fenhe build`")
        _, self._kind, rows, width, self._row_bytes = _HEADER.unpack_from(head)
        self.shape: tuple[int, ...] = (rows, width)
        if not can_keep(self._kind) or os.fstat(self._descriptor).st_size != HEADER_BYTES + rows * self._row_bytes:
            raise self._damage()

    def __getitem__(self, ids: list[int], /) -> Floats:
        """Shapes: returns [ids, hidden_size]. Raises: WeightsError for a file that was cut short since."""
        unique = list(dict.fromkeys(ids))
        rows = np.frombuffer(b"".join(map(self._row, unique)), np.uint8).reshape(len(unique), self._row_bytes)
        values = read_floats(rows, self._kind)
        if len(unique) == len(ids):
            return values
        places = {id: place for place, id in enumerate(unique)}
        return values[[places[id] for id in ids]]

    def _row(self, id: int) -> bytes:
        if not 0 <= id < self.shape[0]:
            raise IndexError(f"{self._file} has {self.shape[0]} rows, and no row {id}")
        row = os.pread(self._descriptor, self._row_bytes, HEADER_BYTES + id * self._row_bytes)
        if len(row) != self._row_bytes:
            raise self._damage()
        return row

    def _damage(self) -> WeightsError:
        return WeightsError(f"{self._file} is damaged or cut short; build the student again with `fenhe build`")


def write_table(file: Path, kind: int, shape: tuple[int, int], pieces: Iterable[npt.NDArray[np.uint8]]) -> None:
    """Write rows, some at a time. Shapes: each piece [rows, bytes of a row]."""
    with file.open("wb") as stream:
        for number, piece in enumerate(pieces):
            if number == 0:
                stream.write(table_header(kind, shape, piece.shape[1]))
            stream.write(np.ascontiguousarray(piece).data)
