"""The graphs of a student: one per module, per exit, and the head.

Stage graphs (modules and exits) read `hidden` [batch, length, hidden_size] and, for each of their layers i, the
caller's key and value buffers `past_key_i`, `past_value_i` [batch, kv_heads, capacity, head_dim]. They write `output`
and the same buffers, bound again as `present_key_i`, `present_value_i`. `last_positions` [batch] is the position of
each row's last token, `total_length` the largest of them plus one. A row's tokens end at its last position. Modules of
a student with widths also read `rows_by_width` (`models/graphs/widths.py`).

Of a prompt's tokens only the last one is read behind the last layer. So the last stage with layers of a path, if it is
that of all paths through it and its operators are fenhe's own, also reads `kept_rows` [kept]: places of tokens, counted
over batch and length, ascending. All tokens go through its attention; what follows in its last layer is computed for
those kept alone, and `output` is [kept, 1, hidden_size]. `kept_by_width` counts them as `rows_by_width` counts rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from models.architecture import Architecture
from models.graphs.linear import LinearInput, LinearWriter, Matrix
from models.graphs.onnx_graph import MICROSOFT, GraphWriter, Kind, TensorSpec
from models.graphs.rotate import MAP_BIAS, MAP_WEIGHT, hadamard, hadamard_size
from models.graphs.row_groups import RowGroups
from models.graphs.widths import ROWS_BY_WIDTH, LayerWidths, block_name, own_down, own_output
from models.sources.source import ModelSource

GATE_UP = ("gate_proj", "up_proj")
NO_WIDTHS: Mapping[int, LayerWidths] = MappingProxyType({})
KEPT_ROWS, KEPT_BY_WIDTH = "kept_rows", "kept_by_width"
KV_KINDS = {"float32": Kind.FLOAT, "float16": Kind.FLOAT16}


@dataclass(slots=True, kw_only=True, frozen=True)
class Residual:
    """The running sum of a decoder, with the last layer's contribution not yet added.

    `scale` is the factor per row still to be applied to `pending`.
    """

    total: str
    pending: str | None = None
    scale: str | None = None

    @property
    def pending_inputs(self) -> list[str]:
        """The further inputs of an operator of fenhe's own that first adds the pending value to the running sum."""
        return [name for name in (self.pending, self.scale) if name is not None]


class LayerWriter(Protocol):
    """Writes decoder layers in one set of operators and one precision."""

    @property
    def kv_type(self) -> str:
        """numpy name of the KV cache's element type."""
        ...

    @property
    def can_keep_rows(self) -> bool:
        """Whether its layers take `keeps_rows`."""
        ...

    def layer(
        self,
        graph: GraphWriter,
        source: ModelSource,
        index: int,
        slot: int,
        residual: Residual,
        widths: LayerWidths | None = None,
        *,
        keeps_rows: bool = False,
    ) -> Residual:
        """Write layer `index` of the source; its KV buffers are number `slot` of the stage.

        With `widths` the source has its neurons in their order and the widths' own matrices, and the graph an input
        `rows_by_width`. With `keeps_rows` what follows attention, and the result, has `kept_rows` alone.
        """
        ...

    def add(self, graph: GraphWriter, residual: Residual, output: str) -> None:
        """Write the hidden state between modules, under the name `output`."""
        ...

    def norm(self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual, output: str) -> None:
        """Write the final norm, which gives the head's input, under the name `output`."""
        ...

    def head(self, graph: GraphWriter, source: ModelSource, value: str, output: str) -> None:
        """Write the head: from `value` to logits, under the name `output`."""
        ...


def write_stage(
    graph: GraphWriter,
    writer: LayerWriter,
    source: ModelSource,
    *,
    layers: range,
    final_norm: str | None,
    has_map: bool = False,
    is_last: bool = False,
    widths: Mapping[int, LayerWidths] = NO_WIDTHS,
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Write a module (`final_norm` None) or an exit (`final_norm` names its norm's weight; a map goes before all).

    `widths` are those of the layers, by their index; `is_last` where no path goes on to other layers. Returns the
    graph's inputs and outputs.
    """
    architecture = source.architecture
    keeps_rows = is_last and writer.can_keep_rows and len(layers) > 0
    residual = Residual(total=_mapped(graph, source, "hidden") if has_map else "hidden")
    for slot, index in enumerate(layers):
        keeps_here = keeps_rows and index == layers[-1]
        residual = writer.layer(graph, source, index, slot, residual, widths.get(index), keeps_rows=keeps_here)
    if final_norm is None:
        writer.add(graph, residual, "output")
    else:
        writer.norm(graph, source, final_norm, residual, "output")
    num_rows = [len(widths[index].neurons) for index in layers[:1] if index in widths]
    inputs = _stage_inputs(architecture, writer, len(layers))
    inputs += [TensorSpec(name=ROWS_BY_WIDTH, kind=Kind.INT32, dimensions=(count,)) for count in num_rows]
    if keeps_rows:
        inputs.append(TensorSpec(name=KEPT_ROWS, kind=Kind.INT32, dimensions=("kept",)))
        inputs += [TensorSpec(name=KEPT_BY_WIDTH, kind=Kind.INT32, dimensions=(count,)) for count in num_rows]
    return inputs, _stage_outputs(architecture, writer, len(layers))


def write_head(
    graph: GraphWriter, writer: LayerWriter, source: ModelSource
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Write the head. Shapes: `normed` [rows, hidden_size] -> `logits` [rows, vocab]."""
    architecture = source.architecture
    writer.head(graph, source, "normed", "logits")
    normed = TensorSpec(name="normed", kind=Kind.FLOAT, dimensions=("rows", architecture.hidden_size))
    logits = TensorSpec(name="logits", kind=Kind.FLOAT, dimensions=("rows", architecture.vocab_size))
    return [normed], [logits]


def _mapped(graph: GraphWriter, source: ModelSource, value: str) -> str:
    """A linear map of the residual stream. In fp32 at every precision: the raw stream has a few very large channels,
    which no norm has scaled down yet, and 8 bits per row would lose the others.
    """
    weight = graph.weight(MAP_WEIGHT, np.ascontiguousarray(source.read(MAP_WEIGHT).T))
    return graph.node("Add", [graph.node("MatMul", [value, weight]), graph.weight(MAP_BIAS, source.read(MAP_BIAS))])


def head_weight(source: ModelSource) -> str:
    return "model.embed_tokens.weight" if source.architecture.has_tied_head else "lm_head.weight"


def _stage_inputs(architecture: Architecture, writer: LayerWriter, num_layers: int) -> list[TensorSpec]:
    inputs = [_hidden_spec("hidden", architecture)]
    if num_layers:
        half = architecture.head_dim // 2
        inputs += [
            TensorSpec(name="last_positions", kind=Kind.INT32, dimensions=("batch",)),
            TensorSpec(name="total_length", kind=Kind.INT32, dimensions=()),
            TensorSpec(name="cos", kind=Kind.FLOAT, dimensions=("positions", half)),
            TensorSpec(name="sin", kind=Kind.FLOAT, dimensions=("positions", half)),
        ]
    return inputs + _kv_specs("past", architecture, writer, num_layers)


def _stage_outputs(architecture: Architecture, writer: LayerWriter, num_layers: int) -> list[TensorSpec]:
    return [_hidden_spec("output", architecture), *_kv_specs("present", architecture, writer, num_layers)]


def _hidden_spec(name: str, architecture: Architecture) -> TensorSpec:
    return TensorSpec(name=name, kind=Kind.FLOAT, dimensions=("batch", "length", architecture.hidden_size))


def _kv_specs(prefix: str, architecture: Architecture, writer: LayerWriter, num_layers: int) -> list[TensorSpec]:
    dimensions = ("batch", architecture.num_kv_heads, "capacity", architecture.head_dim)
    return [
        TensorSpec(name=f"{prefix}_{part}_{slot}", kind=KV_KINDS[writer.kv_type], dimensions=dimensions)
        for slot in range(num_layers)
        for part in ("key", "value")
    ]


@dataclass(slots=True, kw_only=True, frozen=True)
class StockLayerWriter:
    """Operators that every ONNX Runtime build carries, KV in fp32.

    `mixes_down_input` belongs to weights in a rotated basis (`models/graphs/rotate.py`). With `keeps_neuron_order` rows
    of the whole width sum over neurons as a student without widths does, to the last bit.
    """

    linear: LinearWriter
    head_linear: LinearWriter
    mixes_down_input: bool = False
    keeps_neuron_order: bool = False
    kv_type: str = "float32"
    can_keep_rows: bool = False

    def layer(
        self,
        graph: GraphWriter,
        source: ModelSource,
        index: int,
        slot: int,
        residual: Residual,
        widths: LayerWidths | None = None,
        *,
        keeps_rows: bool = False,
    ) -> Residual:
        assert not keeps_rows
        prefix = f"model.layers.{index}"
        total, normed = self._normalise(graph, source, f"{prefix}.input_layernorm.weight", residual)
        attended = self.linear.prepare(graph, self._attention(graph, source, prefix, slot, normed))
        pending = self._attention_output(graph, source, index, attended, widths)
        residual = Residual(total=total, pending=pending)
        total, normed = self._normalise(graph, source, f"{prefix}.post_attention_layernorm.weight", residual)
        prepared = self.linear.prepare(graph, normed)
        if widths is None:
            return Residual(total=total, pending=self._feed_forward(graph, source, prefix, prepared))
        return Residual(total=total, pending=self._feed_forward_by_width(graph, source, index, prepared, widths))

    def add(self, graph: GraphWriter, residual: Residual, output: str) -> None:
        if residual.pending is None:
            graph.named_node("Identity", [residual.total], [output])
        else:
            graph.named_node("Add", [residual.total, residual.pending], [output])

    def norm(self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual, output: str) -> None:
        _, normed = self._normalise(graph, source, gamma, residual)
        graph.named_node("Identity", [normed], [output])

    def head(self, graph: GraphWriter, source: ModelSource, value: str, output: str) -> None:
        prepared = self.head_linear.prepare(graph, value)
        logits = self.head_linear.multiply(graph, prepared, "head", source.read(head_weight(source)))
        graph.named_node("Identity", [logits], [output])

    def _normalise(self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual) -> tuple[str, str]:
        """Add what is pending and normalise: (sum, normalised sum)."""
        epsilon = source.architecture.norm_eps
        weight = graph.weight(gamma, source.read(gamma))
        if residual.pending is None:
            normed = graph.node("SimplifiedLayerNormalization", [residual.total, weight], epsilon=epsilon, axis=-1)
            return residual.total, normed
        normed, _, _, total = graph.nodes(
            "SkipSimplifiedLayerNormalization",
            [residual.total, residual.pending, weight],
            4,
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return total, normed

    def _attention(self, graph: GraphWriter, source: ModelSource, prefix: str, slot: int, normed: str) -> str:
        architecture = source.architecture
        query, key, value = self._query_key_value(graph, source, f"{prefix}.self_attn", normed)
        attended = f"{prefix}.attended"
        graph.named_node(
            "GroupQueryAttention",
            [
                *(query, key, value),
                *(f"past_key_{slot}", f"past_value_{slot}"),
                *("last_positions", "total_length", "cos", "sin"),
            ],
            [attended, f"present_key_{slot}", f"present_value_{slot}"],
            domain=MICROSOFT,
            num_heads=architecture.num_heads,
            kv_num_heads=architecture.num_kv_heads,
            do_rotary=1,
            local_window_size=architecture.sliding_window or -1,
        )
        return attended

    def _attention_output(
        self, graph: GraphWriter, source: ModelSource, index: int, attended: LinearInput, widths: LayerWidths | None
    ) -> str:
        prefix = f"model.layers.{index}.self_attn"
        if widths is None or len(widths.output_runs) == 1:
            return self._project(graph, source, prefix, ("o_proj",), attended)
        groups = RowGroups(graph=graph, num_entries=len(widths.neurons))
        outputs = []
        for run in widths.output_runs:
            rows = groups.between(attended, run.first, run.last)
            weight = own_output(index, run.first) if run.own else f"{prefix}.o_proj.weight"
            # A name for each product: ONNX Runtime's conversion for processors without VNNI fails on two of one matrix.
            name = weight.removesuffix(".weight") + (f".{run.first}" if run.first and not run.own else "")
            outputs.append(self.linear.multiply(graph, rows, name, source.read(weight)))
        return self._biased(graph, source, prefix, ("o_proj",), groups.joined(outputs))

    def _query_key_value(
        self, graph: GraphWriter, source: ModelSource, prefix: str, normed: str
    ) -> tuple[str, str, str]:
        """All three packed into the first value and the others empty, unless query and key have norms of their own."""
        architecture = source.architecture
        prepared = self.linear.prepare(graph, normed)
        packed = self._project(graph, source, prefix, ("q_proj", "k_proj", "v_proj"), prepared)
        if not architecture.has_qk_norm:
            return packed, "", ""
        sizes = np.array([architecture.q_size, architecture.kv_size, architecture.kv_size], np.int64)
        query, key, value = graph.nodes("Split", [packed, graph.weight("qkv_sizes", sizes)], 3, axis=-1)
        return (
            self._head_norm(graph, source, f"{prefix}.q_norm.weight", query, architecture.num_heads),
            self._head_norm(graph, source, f"{prefix}.k_norm.weight", key, architecture.num_kv_heads),
            value,
        )

    def _head_norm(self, graph: GraphWriter, source: ModelSource, gamma: str, value: str, num_heads: int) -> str:
        """RMS norm of every head on its own (Qwen3)."""
        head_dim = source.architecture.head_dim
        split = graph.weight(f"split_{num_heads}_heads", np.array([0, 0, num_heads, head_dim], np.int64))
        joined = graph.weight(f"join_{num_heads}_heads", np.array([0, 0, num_heads * head_dim], np.int64))
        heads = graph.node("Reshape", [value, split])
        weight = graph.weight(gamma, source.read(gamma))
        normed = graph.node(
            "SimplifiedLayerNormalization", [heads, weight], epsilon=source.architecture.norm_eps, axis=-1
        )
        return graph.node("Reshape", [normed, joined])

    def _feed_forward(self, graph: GraphWriter, source: ModelSource, prefix: str, prepared: LinearInput) -> str:
        gate_up = self._project(graph, source, f"{prefix}.mlp", GATE_UP, prepared)
        product = _swiglu(graph, gate_up, source.architecture.intermediate_size, "gate_up_sizes")
        if self.mixes_down_input:
            product = _mixed(graph, product, source.architecture.intermediate_size)
        return self._project(graph, source, f"{prefix}.mlp", ("down_proj",), self.linear.prepare(graph, product))

    def _feed_forward_by_width(
        self, graph: GraphWriter, source: ModelSource, index: int, prepared: LinearInput, widths: LayerWidths
    ) -> str:
        """Blocks of neurons for the rows that run them, then the rows of each width with its own output matrix."""
        prefix = f"model.layers.{index}.mlp"
        groups = RowGroups(graph=graph, num_entries=len(widths.neurons))
        gate, up = (source.read(f"{prefix}.{part}.weight") for part in GATE_UP)
        products: list[list[str]] = [[] for _ in widths.neurons]
        for block in widths.blocks:
            rows, neurons = groups.first(prepared, block.entry), slice(block.first, block.end)
            weight = np.concatenate([gate[neurons], up[neurons]])
            gate_up = self.linear.multiply(graph, rows, block_name(index, block), weight)
            product = _swiglu(graph, gate_up, block.size, f"gate_up_sizes_{block.size}")
            for entry, of_width in enumerate(groups.split(product, block.entry)):
                products[entry].append(of_width)
        outputs = [
            self._down_at(graph, source, index, entry, _end_to_end(graph, parts), widths)
            for entry, parts in enumerate(products)
        ]
        return groups.joined(outputs)

    def _down_at(
        self, graph: GraphWriter, source: ModelSource, index: int, entry: int, product: str, widths: LayerWidths
    ) -> str:
        """The neurons of the width at `entry` times its output matrix."""
        name = own_down(index, entry) if entry else f"model.layers.{index}.mlp.down_proj.weight"
        weight = source.read(name)
        if not entry and self.keeps_neuron_order:
            product = graph.node("Gather", [product, graph.weight(f"{name}.places", widths.places)], axis=-1)
            weight = weight[:, widths.places]
        elif self.mixes_down_input:
            product = _mixed(graph, product, widths.neurons[entry], of=f"_{widths.neurons[entry]}")
        return self.linear.multiply(graph, self.linear.prepare(graph, product), name.removesuffix(".weight"), weight)

    def _project(
        self, graph: GraphWriter, source: ModelSource, prefix: str, parts: tuple[str, ...], prepared: LinearInput
    ) -> str:
        """One product with the named matrices joined, and their biases added."""
        name = f"{prefix}.{'_'.join(parts)}"
        result = self.linear.multiply(graph, prepared, name, stacked(source, prefix, parts))
        return self._biased(graph, source, prefix, parts, result)

    def _biased(self, graph: GraphWriter, source: ModelSource, prefix: str, parts: tuple[str, ...], result: str) -> str:
        bias = stacked_bias(source, prefix, parts)
        name = f"{prefix}.{'_'.join(parts)}.bias"
        return result if bias is None else graph.node("Add", [result, graph.weight(name, bias)])


def _swiglu(graph: GraphWriter, gate_up: str, num_neurons: int, sizes: str) -> str:
    """Shapes: gate_up [batch, length, 2 * num_neurons], returns [batch, length, num_neurons]."""
    halves = graph.weight(sizes, np.array([num_neurons] * 2, np.int64))
    gate, up = graph.nodes("Split", [gate_up, halves], 2, axis=-1)
    return graph.node("Mul", [graph.node("QuickGelu", [gate], domain=MICROSOFT, alpha=1.0), up])


def _end_to_end(graph: GraphWriter, parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=-1)


def _mixed(graph: GraphWriter, value: str, width: int, of: str = "") -> str:
    """The Hadamard transform over the parts of a value; `of` tells its constants from those of another width.

    Shapes: [batch, length, width], in and out.
    """
    size = hadamard_size(width)
    split = graph.weight(f"split_parts{of}", np.array([0, 0, size, width // size], np.int64))
    joined = graph.weight(f"join_parts{of}", np.array([0, 0, width], np.int64))
    parts = graph.node("Reshape", [value, split])
    mixed = graph.node("MatMul", [graph.weight(f"hadamard{of}", hadamard(size)), parts])
    return graph.node("Reshape", [mixed, joined])


def stacked(source: ModelSource, prefix: str, parts: tuple[str, ...]) -> Matrix:
    """Weights one above the other. Shapes: returns [sum of outs, in]."""
    return np.concatenate([source.read(f"{prefix}.{part}.weight") for part in parts])


def kept(graph: GraphWriter, value: str) -> str:
    """Shapes: value [batch, length, size], returns [kept, 1, size]."""
    side_by_side = graph.node("Reshape", [value, graph.weight("side_by_side", np.array([-1, 1, 0], np.int64))])
    return graph.node("Gather", [side_by_side, KEPT_ROWS], axis=0)


def slot_attention_attributes(architecture: Architecture) -> dict[str, float]:
    """Of fenhe's own attention operators, whatever rows they give."""
    return {
        "num_heads": architecture.num_heads,
        "kv_num_heads": architecture.num_kv_heads,
        "scale": float(architecture.head_dim**-0.5),
        "local_window_size": architecture.sliding_window or -1,
        "norm_epsilon": architecture.norm_eps,
    }


def stacked_bias(source: ModelSource, prefix: str, parts: tuple[str, ...]) -> Matrix | None:
    """Biases end to end, or None when the model has none there."""
    names = source.tensor_names()
    if f"{prefix}.{parts[0]}.bias" not in names:
        return None
    return np.concatenate([source.read(f"{prefix}.{part}.bias") for part in parts])
