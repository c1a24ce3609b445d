"""Reads one safetensors file tensor by tensor, as fp32, without torch (numpy has no bfloat16 of its own)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import WeightsError

MAX_HEADER_BYTES = 100_000_000
PREFIX_BYTES = 8

_DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}
_INTEGERS: dict[str, np.dtype[Any]] = {"I8": np.dtype("<i1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4")}

Size = Annotated[int, msgspec.Meta(ge=0)]


class StoredTensor(msgspec.Struct, frozen=True):
    """One entry of the header. Units: `data_offsets` count bytes from the end of the header."""

    dtype: str
    shape: tuple[Size, ...]
    data_offsets: tuple[Size, Size]


class SafetensorsFile:
    """One file; its tensors stay on disk until they are read, and are never mapped: a file that is cut short meanwhile
    would end the process. `metadata` is the header's, empty without any."""

    def __init__(self, file: Path) -> None:
        """Raises: WeightsError for a damaged or truncated file."""
        self.file = file
        self.tensors, self.metadata, self._data_start = _read_header(file)
        size = file.stat().st_size
        for name, tensor in self.tensors.items():
            self._check(name, tensor, size)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A fresh fp32 copy of a tensor. Shapes: as stored. Raises: WeightsError for an unsupported type of number."""
        values = self._read(name, _DTYPES)
        if self.tensors[name].dtype == "BF16":
            wide = values.astype(np.uint32)
            wide <<= 16
            values = wide.view(np.float32)
        return values.astype(np.float32, copy=False)

    def read_integers(self, name: str) -> npt.NDArray[np.int64]:
        """A fresh copy of a tensor of integers. Shapes: as stored. Raises: WeightsError for other numbers."""
        return self._read(name, _INTEGERS).astype(np.int64)

    def _read(self, name: str, dtypes: Mapping[str, np.dtype[Any]]) -> npt.NDArray[Any]:
        tensor = self.tensors[name]
        dtype = dtypes.get(tensor.dtype)
        if dtype is None:
            known = ", ".join(dtypes)
            raise WeightsError(f"{self.file}: tensor {name} is stored as {tensor.dtype}; only {known} can be read")
        start, end = tensor.data_offsets
        found = np.fromfile(self.file, np.uint8, end - start, offset=self._data_start + start)
        if len(found) != end - start:
            raise WeightsError(f"{self.file} was cut short while it was read; fetch it again")
        return found.view(dtype).reshape(tensor.shape)

    def _check(self, name: str, tensor: StoredTensor, size: int) -> None:
        start, end = tensor.data_offsets
        if self._data_start + end > size:
            raise WeightsError(f"{self.file} is cut short: tensor {name} lies beyond its end; fetch it again")
        dtype = (_DTYPES | _INTEGERS).get(tensor.dtype)
        if start > end or (dtype and end - start != int(np.prod(tensor.shape)) * dtype.itemsize):
            raise WeightsError(f"{self.file} is damaged: the bytes of tensor {name} do not fit its shape")


def _read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str], int]:
    with file.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(PREFIX_BYTES), "little")
        if not 2 <= num_bytes <= min(MAX_HEADER_BYTES, file.stat().st_size - PREFIX_BYTES):
            raise WeightsError(f"{file} is damaged or cut short: its header does not fit; fetch it again")
        raw = stream.read(num_bytes)
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", b"{}"), type=dict[str, str])
        tensors = {name: msgspec.json.decode(entry, type=StoredTensor) for name, entry in entries.items()}
    except msgspec.DecodeError as error:
        raise WeightsError(f"{file} is damaged: its header cannot be read: {error}; fetch it again") from error
    return tensors, metadata, PREFIX_BYTES + num_bytes
