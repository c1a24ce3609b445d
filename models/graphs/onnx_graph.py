"""A small ONNX graph writer: nodes in order, weights streamed to one external file.

Owns naming and serialisation; knows nothing of decoders. Imports `onnx` where it writes: a server that starts reads
names and precisions from here, and writes no graph.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
FENHE = "fenhe"
PACKED_WEIGHTS = "weights"
"""The input that packed matrices lie in: all bytes of the weights file of the graph."""
WEIGHT_ALIGNMENT_BYTES = 64
SMALL_TENSOR_BYTES = 1024
"""Up to this size a tensor lives in the graph file itself."""

Dimensions = Sequence[int | str]


class Kind(IntEnum):
    """Of a tensor's elements, as ONNX numbers them. Source: `TensorProto.DataType` in onnx.proto."""

    FLOAT = 1
    UINT8 = 2
    INT32 = 6
    INT64 = 7
    FLOAT16 = 10


class WeightsFile:
    """Append-only file of named tensors, aligned so that ONNX Runtime can map them; hashes what it writes.

    Graphs that name the same tensor share it, and tensors of the same bytes lie in one place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._places: dict[str, int] = {}
        self._contents: dict[bytes, tuple[int, int]] = {}
        self.size_bytes = 0

    def tensor(self, name: str, array: npt.NDArray[Any]) -> "onnx.TensorProto":
        """A reference to a tensor of this file, written now unless one of that name already is. Shapes: any."""
        if name not in self._tensors:
            self._tensors[name] = self._append(name, array)
        return self._tensors[name]

    def packed(self, name: str, pieces: Iterable[bytes]) -> int:
        """The place of a matrix that was packed for native operators, written now unless one of that name already is.

        Units: bytes from the start of the file.
        """
        if name not in self._places:
            self._align()
            self._places[name] = self.size_bytes
            for piece in pieces:
                self._write(piece)
        return self._places[name]

    def _align(self) -> None:
        self._write(b"\0" * (-self.size_bytes % WEIGHT_ALIGNMENT_BYTES))

    def _append(self, name: str, array: npt.NDArray[Any]) -> "onnx.TensorProto":
        from onnx import TensorProto, helper

        offset, length = self._place(np.ascontiguousarray(array).tobytes())
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        reference = {"location": self.path.name, "offset": offset, "length": length}
        for key, value in reference.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _place(self, content: bytes) -> tuple[int, int]:
        """Where these bytes lie, written now unless they already are. Units: bytes; returns offset and length."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._contents:
            self._align()
            self._contents[digest] = (self.size_bytes, len(content))
            self._write(content)
        return self._contents[digest]

    def close(self) -> str:
        """Finish the file; returns its SHA-256."""
        self._file.close()
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)


@dataclass(slots=True, kw_only=True, frozen=True)
class TensorSpec:
    """A graph input or output; names in `dimensions` are free."""

    name: str
    kind: int
    dimensions: tuple[int | str, ...]


class GraphWriter:
    """Collects nodes and weights of one graph. Values are referred to by name; `""` is an absent optional input."""

    def __init__(self, weights: WeightsFile) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._num_values = 0
        self._once: set[str] = set()
        self._has_packed = False

    def node(self, kind: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        return self.nodes(kind, inputs, 1, domain=domain, **attributes)[0]

    def nodes(
        self, kind: str, inputs: Sequence[str], num_outputs: int, *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs; returns their names."""
        outputs = [f"value_{self._num_values + i}" for i in range(num_outputs)]
        self._num_values += num_outputs
        self.named_node(kind, inputs, outputs, domain=domain, **attributes)
        return outputs

    def named_node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node whose outputs are graph outputs or otherwise known by name; `""` skips one."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))

    def node_once(self, output: str, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node whose output has this name, unless the graph has it already; returns the name."""
        if output not in self._once:
            self._once.add(output)
            self.named_node(kind, inputs, [output], **attributes)
        return output

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add a constant, outside the graph file when it is large; the same name twice is the same constant.

        Shapes: any; the graph's constant has the array's.
        """
        from onnx import numpy_helper

        if name not in self._tensors:
            if array.nbytes <= SMALL_TENSOR_BYTES:
                self._tensors[name] = numpy_helper.from_array(array, name)
            else:
                self._tensors[name] = self._weights.tensor(name, array)
        return name

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add a constant inside the graph file, however large; the same name twice is the same constant.

        Shapes: any.
        """
        from onnx import numpy_helper

        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def packed(self, name: str, pieces: Iterable[bytes]) -> int:
        """`WeightsFile.packed`; the graph gets an input `PACKED_WEIGHTS` for the whole file."""
        self._has_packed = True
        return self._weights.packed(name, pieces)

    def save(self, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Write the graph file."""
        from onnx import helper

        graph = helper.make_graph(
            self._nodes,
            path.stem,
            [_value_info(spec) for spec in (*inputs, *([_packed_spec()] if self._has_packed else []))],
            [_value_info(spec) for spec in outputs],
            list(self._tensors.values()),
        )
        domains = {node.domain for node in self._nodes} - {""}
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), *(helper.make_opsetid(name, 1) for name in sorted(domains))],
            ir_version=IR_VERSION,
            producer_name="fenhe",
        )
        path.write_bytes(model.SerializeToString(deterministic=True))


def _packed_spec() -> TensorSpec:
    return TensorSpec(name=PACKED_WEIGHTS, kind=Kind.UINT8, dimensions=("bytes",))


def _value_info(spec: TensorSpec) -> "onnx.ValueInfoProto":
    from onnx import helper

    return helper.make_tensor_value_info(spec.name, spec.kind, spec.dimensions)
