"""Decoder layers in fenhe's own fused operators (`engines/native`): nine nodes a layer instead of thirty.

Between operators, values stay integers with one scale per row: each operator takes its input's row scale in and gives
its output's row scale out, so that no pass over memory is spent on scaling alone. KV is stored in fp16.
"""

from dataclasses import dataclass

import numpy as np

from models.graphs.decoder_graph import (
    GATE_UP,
    KEPT_BY_WIDTH,
    Residual,
    head_weight,
    kept,
    slot_attention_attributes,
    stacked,
    stacked_bias,
)
from models.graphs.linear import LinearInput, Matrix
from models.graphs.onnx_graph import FENHE, GraphWriter
from models.graphs.quantise import quantise_columns
from models.graphs.rotate import hadamard_size
from models.graphs.widths import ROWS_BY_WIDTH, LayerWidths, own_down, own_output
from models.sources.source import ModelSource


@dataclass(slots=True, kw_only=True, frozen=True)
class NativeLayerWriter:
    """int8 weights per column, int8 activations per row, fused operators; for weights in a rotated basis."""

    kv_type: str = "float16"
    can_keep_rows: bool = True

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
        prefix = f"model.layers.{index}"
        total, normed = self._normalise(graph, source, f"{prefix}.input_layernorm.weight", residual)
        attended = self._attention(graph, source, f"{prefix}.self_attn", slot, normed)
        rows_by_width = ROWS_BY_WIDTH
        if keeps_rows:
            total, rows_by_width = kept(graph, total), KEPT_BY_WIDTH
            attended = LinearInput(value=kept(graph, attended.value), row_scale=kept(graph, attended.row_scale or ""))
        if widths is None or not any(widths.has_own_output):
            pending = self._project(graph, source, f"{prefix}.self_attn", ("o_proj",), attended)
        else:
            pending = _output_by_width(graph, source, index, widths, attended, rows_by_width)
        residual = Residual(total=total, pending=pending.value, scale=pending.row_scale)
        total, normed = self._normalise(graph, source, f"{prefix}.post_attention_layernorm.weight", residual)
        if widths is None:
            pending = self._feed_forward(graph, source, f"{prefix}.mlp", normed)
        else:
            pending = _feed_forward_by_width(graph, source, index, widths, normed, rows_by_width)
        return Residual(total=total, pending=pending.value, scale=pending.row_scale)

    def add(self, graph: GraphWriter, residual: Residual, output: str) -> None:
        graph.named_node("ScaleAdd", [residual.total, *residual.pending_inputs], [output], domain=FENHE)

    def norm(self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual, output: str) -> None:
        inputs = [residual.total, graph.weight(gamma, source.read(gamma)), *residual.pending_inputs]
        graph.named_node("SkipRmsNorm", inputs, [output], domain=FENHE, epsilon=source.architecture.norm_eps)

    def head(self, graph: GraphWriter, source: ModelSource, value: str, output: str) -> None:
        quantised, scale = graph.nodes("QuantizeRows", [value], 2, domain=FENHE)
        inputs = [quantised, *_columns(graph, "head", source.read(head_weight(source))), scale]
        graph.named_node("QuantizedProduct", inputs, [output], domain=FENHE)

    def _normalise(
        self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual
    ) -> tuple[str, LinearInput]:
        """Add what is pending, normalise and quantise: (sum, quantised normalised sum)."""
        pending = residual.pending_inputs
        quantised, scale, *total = graph.nodes(
            "SkipRmsNormQuantize",
            [residual.total, graph.weight(gamma, source.read(gamma)), *pending],
            3 if pending else 2,
            domain=FENHE,
            epsilon=source.architecture.norm_eps,
        )
        return (total[0] if total else residual.total), LinearInput(value=quantised, row_scale=scale)

    def _attention(
        self, graph: GraphWriter, source: ModelSource, prefix: str, slot: int, normed: LinearInput
    ) -> LinearInput:
        architecture = source.architecture
        parts = ("q_proj", "k_proj", "v_proj")
        name = f"{prefix}.{'_'.join(parts)}"
        packed = _product(graph, normed.value, name, stacked(source, prefix, parts))
        bias = stacked_bias(source, prefix, parts)
        attended, scale = f"{prefix}.attended", f"{prefix}.attended_scale"
        graph.named_node(
            "SlotAttention",
            [
                *(packed, normed.row_scale or ""),
                *(f"past_key_{slot}", f"past_value_{slot}"),
                *("last_positions", "cos", "sin"),
                "" if bias is None else graph.weight(f"{name}.bias", bias),
                *self._head_norms(graph, source, prefix),
            ],
            [attended, scale, f"present_key_{slot}", f"present_value_{slot}"],
            domain=FENHE,
            **slot_attention_attributes(architecture),
        )
        return LinearInput(value=attended, row_scale=scale)

    def _head_norms(self, graph: GraphWriter, source: ModelSource, prefix: str) -> list[str]:
        if not source.architecture.has_qk_norm:
            return ["", ""]
        names = [f"{prefix}.q_norm.weight", f"{prefix}.k_norm.weight"]
        return [graph.weight(name, source.read(name)) for name in names]

    def _feed_forward(self, graph: GraphWriter, source: ModelSource, prefix: str, normed: LinearInput) -> LinearInput:
        gate_up = self._project(graph, source, prefix, GATE_UP, normed)
        quantised, scale = graph.nodes(
            "SwigluQuantize",
            [gate_up.value, gate_up.row_scale or ""],
            2,
            domain=FENHE,
            hadamard_parts=hadamard_size(source.architecture.intermediate_size),
        )
        return self._project(graph, source, prefix, ("down_proj",), LinearInput(value=quantised, row_scale=scale))

    def _project(
        self, graph: GraphWriter, source: ModelSource, prefix: str, parts: tuple[str, ...], prepared: LinearInput
    ) -> LinearInput:
        name = f"{prefix}.{'_'.join(parts)}"
        result = _product(graph, prepared.value, name, stacked(source, prefix, parts))
        return _with_bias(graph, source, prefix, parts, LinearInput(value=result, row_scale=prepared.row_scale))


def _with_bias(
    graph: GraphWriter, source: ModelSource, prefix: str, parts: tuple[str, ...], product: LinearInput
) -> LinearInput:
    """A product whose row scale is still to be applied; where there is a bias, it has been applied already."""
    bias = stacked_bias(source, prefix, parts)
    if bias is None:
        return product
    scaled = graph.node("Mul", [product.value, product.row_scale or ""])
    return LinearInput(value=graph.node("Add", [scaled, graph.weight(f"{prefix}.{'_'.join(parts)}.bias", bias)]))


def _output_by_width(
    graph: GraphWriter,
    source: ModelSource,
    index: int,
    widths: LayerWidths,
    attended: LinearInput,
    rows_by_width: str,
) -> LinearInput:
    """Attention's output matrix of each row's width; a width that has none of its own takes the model's."""
    prefix = f"model.layers.{index}.self_attn"
    whole = _columns(graph, f"{prefix}.o_proj", source.read(f"{prefix}.o_proj.weight"))
    inputs = [attended.value, rows_by_width, *whole]
    for entry, has_own in list(enumerate(widths.has_own_output))[1:]:
        inputs += _own_columns(graph, source, own_output(index, entry)) if has_own else ["", ""]
    product = graph.node("WidthProduct", inputs, domain=FENHE)
    return _with_bias(graph, source, prefix, ("o_proj",), LinearInput(value=product, row_scale=attended.row_scale))


def _feed_forward_by_width(
    graph: GraphWriter,
    source: ModelSource,
    index: int,
    widths: LayerWidths,
    normed: LinearInput,
    rows_by_width: str,
) -> LinearInput:
    """Each row's own neurons, then its width's own matrix."""
    prefix = f"model.layers.{index}.mlp"
    gate_up = _gate_up_by_block(graph, source, prefix, widths, normed, rows_by_width)
    name, parts = f"{prefix}.widths", [hadamard_size(neurons) for neurons in widths.neurons]
    quantised, scale = graph.nodes(
        "NestedSwigluQuantize",
        [
            *(gate_up, normed.row_scale or "", rows_by_width),
            graph.weight(f"{name}.neurons", np.array(widths.neurons, np.int32)),
            graph.weight(f"{name}.hadamard_parts", np.array(parts, np.int32)),
        ],
        2,
        domain=FENHE,
    )
    whole = _columns(graph, f"{prefix}.down_proj", source.read(f"{prefix}.down_proj.weight"))
    inputs = [quantised, rows_by_width, *whole]
    for entry in range(1, len(widths.neurons)):
        inputs += _own_columns(graph, source, own_down(index, entry))
    return LinearInput(value=graph.node("WidthProduct", inputs, domain=FENHE), row_scale=scale)


def _gate_up_by_block(
    graph: GraphWriter,
    source: ModelSource,
    prefix: str,
    widths: LayerWidths,
    normed: LinearInput,
    rows_by_width: str,
) -> str:
    """Gate and up of each block of neurons, for the rows that run it."""
    gate_up = [source.read(f"{prefix}.{part}.weight") for part in GATE_UP]
    inputs = {entry: ["", ""] for entry in reversed(range(len(widths.neurons)))}
    for block in widths.blocks:
        weight = np.concatenate([part[block.first : block.end] for part in gate_up])
        inputs[block.entry] = _columns(graph, f"{prefix}.{'_'.join(GATE_UP)}.{block.first}", weight)
    ports = [port for pair in inputs.values() for port in pair]
    return graph.node("NestedProduct", [normed.value, rows_by_width, *ports], domain=FENHE)


def _own_columns(graph: GraphWriter, source: ModelSource, name: str) -> list[str]:
    """One of the matrices that belong to a width alone."""
    return _columns(graph, name.removesuffix(".weight"), source.read(name))


def _product(graph: GraphWriter, quantised: str, name: str, weight: Matrix) -> str:
    return graph.node("QuantizedProduct", [quantised, *_columns(graph, name, weight)], domain=FENHE)


def _columns(graph: GraphWriter, name: str, weight: Matrix) -> list[str]:
    columns = quantise_columns(weight)
    return [graph.weight(f"{name}.int8", columns.values), graph.weight(f"{name}.scales", columns.scales)]
