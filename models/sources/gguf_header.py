"""Reads the header of a GGUF file: metadata and where each tensor lies. Reads no tensor.

Not `gguf.GGUFReader`: that one walks past the end of a damaged file without noticing (an array length of
2**60 loops for ever) and takes seconds over a vocabulary. The package's dequantisers are used as they are.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from models.errors import ConfigError, WeightsError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MIN_TENSOR_ENTRY_BYTES = 24
MAX_ARRAY_DEPTH = 2

_SCALARS: dict[int, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Shapes: `shape` is row-major: [out, in] for matrices.
    Units: `offset` counts bytes from the file's start.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(slots=True, kw_only=True, frozen=True)
class GgufHeader:
    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]

    def find(self, key: str, kind: type[T]) -> T | None:
        """A metadata value, None where there is none. Raises: WeightsError for a value of another kind."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise WeightsError(f"{self.file}: metadata {key} is {type(value).__name__}, not {kind.__name__}")
        return value

    def require(self, key: str, kind: type[T]) -> T:
        """A metadata value. Raises: WeightsError where there is none, or one of another kind."""
        value = self.find(key, kind)
        if value is None:
            raise WeightsError(f"{self.file}: metadata {key} is missing")
        return value


def read_header(file: Path) -> GgufHeader:
    """Read and check a header; the tensors it lists lie inside the file.

    Raises: WeightsError that names the file and the byte, ConfigError for an unsupported version or a kind of tensor
    that is not known.
    """
    with file.open("rb") as stream:
        cursor = _Cursor(file, stream)
        if cursor.size < len(MAGIC) + 20:
            raise WeightsError(f"{file} is damaged: {cursor.size} bytes are too few for a GGUF file; fetch it again")
        return _parse(file, cursor)


class _Cursor:
    """A reading position in the header; it never passes the end of the file. Nothing is mapped: a file that is cut
    short meanwhile would end the process."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self._stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.offset = 0

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self.size - self.offset:
            raise self.damage(f"{num_bytes} bytes wanted, {self.size - self.offset} left")
        taken = self._stream.read(num_bytes)
        self.offset += len(taken)
        if len(taken) != num_bytes:
            raise self.damage(f"{num_bytes} bytes wanted, {len(taken)} there")
        return taken

    def integer(self, num_bytes: int) -> int:
        return int.from_bytes(self.take(num_bytes), "little")

    def text(self) -> str:
        try:
            return self.take(self.integer(8)).decode()
        except UnicodeDecodeError as error:
            raise self.damage(f"text that is not UTF-8 ({error.reason})") from error

    def damage(self, what: str) -> WeightsError:
        return WeightsError(f"{self.file} is damaged or cut short at byte {self.offset}: {what}; fetch it again")


def _parse(file: Path, cursor: _Cursor) -> GgufHeader:
    if cursor.take(len(MAGIC)) != MAGIC:
        raise WeightsError(f"{file} is not a GGUF file: it does not begin with {MAGIC.decode()}")
    version = cursor.integer(4)
    if version not in VERSIONS:
        hint = "; big-endian files are not supported" if version & 0xFFFF == 0 else ""
        raise ConfigError(f"{file}: GGUF version {version} is not supported, only 2 and 3 are{hint}")
    num_tensors, num_values = cursor.integer(8), cursor.integer(8)
    if num_tensors * MIN_TENSOR_ENTRY_BYTES > cursor.size:
        raise cursor.damage(f"{num_tensors} tensors cannot be in it")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text()
        metadata[key] = _value(cursor, cursor.integer(4))
    entries = [_tensor_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise cursor.damage(f"general.alignment is {alignment!r}")
    data_start = math.ceil(cursor.offset / alignment) * alignment
    return GgufHeader(file=file, metadata=metadata, tensors=_placed(cursor, entries, data_start))


def _value(cursor: _Cursor, raw_kind: int, depth: int = 0) -> Any:
    if raw_kind == GGUFValueType.STRING:
        return cursor.text()
    if raw_kind == GGUFValueType.ARRAY and depth < MAX_ARRAY_DEPTH:
        inner, length = cursor.integer(4), cursor.integer(8)
        if inner in _SCALARS:
            return _scalars(cursor, inner, length).tolist()
        return [_value(cursor, inner, depth + 1) for _ in range(length)]
    if raw_kind in _SCALARS:
        return _scalars(cursor, raw_kind, 1)[0].item()
    raise cursor.damage(f"a value of unknown kind {raw_kind}")


def _scalars(cursor: _Cursor, raw_kind: int, length: int) -> "np.ndarray[Any, np.dtype[Any]]":
    dtype = _SCALARS[raw_kind]
    return np.frombuffer(cursor.take(length * dtype.itemsize), dtype=dtype)


def _tensor_entry(cursor: _Cursor) -> tuple[str, TensorEntry]:
    name = cursor.text()
    num_dimensions = cursor.integer(4)
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.damage(f"tensor {name!r} has {num_dimensions} dimensions")
    shape = tuple(reversed([cursor.integer(8) for _ in range(num_dimensions)]))
    raw_kind, offset = cursor.integer(4), cursor.integer(8)
    try:
        kind = GGMLQuantizationType(raw_kind)
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ConfigError(
            f"{cursor.file}: tensor {name!r} is stored as kind {raw_kind} of ggml's, which is not known here; take the "
            "model in another kind, such as Q4_K_M, or fetch it again if the file is damaged"
        ) from None
    if shape[-1] % block_size:
        raise cursor.damage(f"tensor {name!r} has rows of {shape[-1]}, which blocks of {block_size} do not fill")
    num_bytes = math.prod(shape) // block_size * block_bytes
    return name, TensorEntry(kind=kind, shape=shape, offset=offset, num_bytes=num_bytes)


def _placed(cursor: _Cursor, entries: list[tuple[str, TensorEntry]], data_start: int) -> dict[str, TensorEntry]:
    """The entries with offsets from the file's start."""
    tensors: dict[str, TensorEntry] = {}
    for name, entry in entries:
        offset = data_start + entry.offset
        if name in tensors:
            raise cursor.damage(f"tensor {name!r} is listed twice")
        if offset + entry.num_bytes > cursor.size:
            raise WeightsError(
                f"{cursor.file} is cut short: tensor {name!r} ends at byte {offset + entry.num_bytes} "
                f"of {cursor.size}; fetch it again"
            )
        tensors[name] = TensorEntry(kind=entry.kind, shape=entry.shape, offset=offset, num_bytes=entry.num_bytes)
    return tensors
