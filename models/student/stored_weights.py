"""A student's weights, read back from its fp32 graphs under the names that it was built from.

The neurons of a student with widths come in the layers' order, so that every width has the first ones.
"""

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from models.errors import ConfigError, WeightsError
from models.graphs.cheap_head import HEAD_BIAS, HEAD_PREVIEW, Candidates
from models.graphs.precisions import PRECISIONS
from models.graphs.rotate import FINAL_NORM, HEAD_PROJECT, rotation
from models.graphs.widths import LayerWidths, block_name, own_down, own_output
from models.sources.source import expected_shapes
from models.student.folder import CHEAP_HEAD, HEAD, Student

FP32 = "fp32"
EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

Array = npt.NDArray[np.float32]

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_PACKED = "self_attn.q_proj_k_proj_v_proj"
_GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_DOWN = "mlp.down_proj.weight"


class GraphWeights:
    """The constants of one graph file; those outside it are read where they lie."""

    def __init__(self, graph: Path) -> None:
        self._graph = graph
        self.model = onnx.load(str(graph), load_external_data=False)
        self._tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str) -> npt.NDArray[Any]:
        """Shapes: as the graph has it. Raises: WeightsError for a name that is not there."""
        if name not in self._tensors:
            raise WeightsError(f"{self._graph} has no {name}; build the student again with `fenhe build`")
        return numpy_helper.to_array(self._tensors[name], base_dir=str(self._graph.parent))

    def matrix(self, name: str) -> Array:
        """Shapes: graphs store [in, out]; returns [out, in]."""
        return np.ascontiguousarray(self.read(name).T)


class StoredWeights:
    """The weights of a student that was built in fp32. Peak memory: one tensor.

    Beside the model's own tensors it has those of widths (`models/graphs/widths.py`).
    """

    def __init__(self, student: Student) -> None:
        """Raises: ConfigError for a student that was built without fp32."""
        self._student = student
        self.architecture = student.manifest.architecture
        if all(variant.name != FP32 for variant in student.manifest.variants):
            built = ", ".join(variant.name for variant in student.manifest.variants)
            raise ConfigError(
                f"student {student.manifest.name!r} has no fp32 weights, only {built}; build it with "
                f"`fenhe build --precision {FP32}`"
            )
        self._graphs: dict[str, GraphWeights] = {}

    def tensor_names(self) -> frozenset[str]:
        own = {
            name
            for layer in range(self.architecture.num_layers)
            for entry, width in enumerate(self._student.manifest.widths, start=1)
            for name in (own_down(layer, entry), *([own_output(layer, entry)] if width.has_own_output else []))
        }
        return frozenset(expected_shapes(self.architecture)) | own

    def read(self, name: str) -> Array:
        """Shapes: matrices are [out, in]; those of a width as `own_down` and `own_output` say.

        Raises: WeightsError for a name that is not there, or a damaged file.
        """
        found = _LAYER.fullmatch(name)
        if found is not None:
            return self._layer_tensor(int(found[1]), found[2], name)
        if name == EMBEDDING:
            return np.array(self._student.embedding(FP32))
        if name == LM_HEAD:
            return self._graph(HEAD).matrix(HEAD)
        return np.asarray(self._graph(self._student.manifest.full_path.exit).read(name))

    def places(self, layer: int) -> npt.NDArray[np.int64] | None:
        """At which place of the layer's order each of the model's neurons is; None: they are in the model's own.

        Shapes: returns [intermediate].
        """
        name = f"model.layers.{layer}.{_DOWN}.places"
        graph = self._module_of(layer)
        return np.asarray(graph.read(name), np.int64) if name in graph else None

    def layer_widths(self, layer: int) -> LayerWidths:
        """The widths of a layer, in the order in which its neurons are read."""
        widths, size = self._student.manifest.widths, self.architecture.intermediate_size
        return LayerWidths(
            neurons=(size, *(width.neurons[layer] for width in widths)),
            has_own_output=(False, *(width.has_own_output for width in widths)),
            order=np.arange(size),
        )

    @cached_property
    def _first_layers(self) -> list[tuple[int, str]]:
        return [(module.first_layer, module.name) for module in self._student.manifest.modules]

    def _module_of(self, layer: int) -> GraphWeights:
        return self._graph(next(name for first, name in reversed(self._first_layers) if first <= layer))

    def _graph(self, stage: str) -> GraphWeights:
        if stage not in self._graphs:
            self._graphs[stage] = GraphWeights(self._student.whole_graph(FP32, stage))
        return self._graphs[stage]

    def _layer_tensor(self, layer: int, part: str, name: str) -> Array:
        graph = self._module_of(layer)
        if part in _GATE_UP:
            return self._neurons(graph, layer, _GATE_UP.index(part))
        if part == _DOWN:
            places = self.places(layer)
            down = graph.matrix(name.removesuffix(".weight"))
            return down if places is None else np.ascontiguousarray(down[:, np.argsort(places)])
        for index, head in enumerate("qkv"):
            if part in (f"self_attn.{head}_proj.weight", f"self_attn.{head}_proj.bias"):
                return self._packed(graph, f"model.layers.{layer}.{_PACKED}", index, is_bias=part.endswith("bias"))
        if part.endswith(("layernorm.weight", "norm.weight", ".bias")):
            return np.asarray(graph.read(name))
        return graph.matrix(name.removesuffix(".weight"))

    def _packed(self, graph: GraphWeights, name: str, index: int, *, is_bias: bool) -> Array:
        sizes = [self.architecture.q_size, self.architecture.kv_size, self.architecture.kv_size]
        values = graph.read(f"{name}.bias") if is_bias else graph.matrix(name)
        return np.ascontiguousarray(np.split(values, np.cumsum(sizes)[:-1])[index])

    def _neurons(self, graph: GraphWeights, layer: int, half: int) -> Array:
        """The rows of gate (`half` 0) or up (1), from all blocks."""
        if not self._student.manifest.widths:
            return np.ascontiguousarray(np.split(graph.matrix(f"model.layers.{layer}.mlp.gate_proj_up_proj"), 2)[half])
        blocks = self.layer_widths(layer).blocks
        return np.concatenate([np.split(graph.matrix(block_name(layer, block)), 2)[half] for block in blocks])


class StoredHead:
    """The cheap head of a student, from whichever precision has it, as float: int8 costs its previews nothing."""

    def __init__(self, student: Student, read: Callable[[str], Array]) -> None:
        """`read` gives the model's own tensors. Raises: ConfigError for a student without one."""
        manifest = student.manifest
        variant = next((one.name for one in manifest.variants if one.cheap_head is not None), None)
        if manifest.cheap_head is None or variant is None:
            raise ConfigError(
                f"student {manifest.name!r} has no cheap head; build it with `fenhe build --head FILE` and a native "
                "precision, such as `--precision fp32,w8a8-native`"
            )
        self._read, self._variant = read, variant
        self._graph = GraphWeights(student.whole_graph(variant, CHEAP_HEAD))
        self._hidden_size = manifest.architecture.hidden_size

    @property
    def candidates(self) -> Candidates:
        """Which tokens are exact."""
        (node,) = [node for node in self._graph.model.graph.node if node.op_type == "CandidateLogits"]
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        return Candidates(
            frequent=self._graph.read("frequent").tolist(),
            num_candidates=int(values["num_candidates"]),
            reach=float(values["reach"]),
        )

    def tensors(self) -> dict[str, Array]:
        """Shapes: `HEAD_PROJECT` [rank, hidden], `HEAD_PREVIEW` [vocab, rank], `HEAD_BIAS` [vocab]."""
        project = self._decoded("project")
        if PRECISIONS[self._variant].is_rotated:
            project = (project @ rotation(self._hidden_size).T) / self._read(FINAL_NORM)
        return {
            HEAD_PROJECT: np.asarray(project, np.float32),
            HEAD_PREVIEW: self._decoded("preview"),
            HEAD_BIAS: np.asarray(self._graph.read("preview.bias"), np.float32),
        }

    def _decoded(self, name: str) -> Array:
        values, scales = self._graph.read(f"{name}.int8"), self._graph.read(f"{name}.scales")
        return np.ascontiguousarray((values * scales).T, np.float32)
