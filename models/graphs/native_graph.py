"""Decoder layers in fenhe's own fused operators (`engines/native`): nine nodes a layer instead of thirty.

Between operators, values stay integers with one scale per row: each operator takes its input's row scale in and gives
its output's row scale out, so that no pass over memory is spent on scaling alone. KV is stored in fp16.
"""

from dataclasses import dataclass

from models.graphs.decoder_graph import GATE_UP, Residual, head_weight, stacked, stacked_bias
from models.graphs.linear import LinearInput, Matrix
from models.graphs.onnx_graph import FENHE, GraphWriter
from models.graphs.quantise import quantise_columns
from models.graphs.rotate import hadamard_size
from models.graphs.widths import LayerWidths
from models.sources.source import ModelSource


@dataclass(slots=True, kw_only=True, frozen=True)
class NativeLayerWriter:
    """int8 weights per column, int8 activations per row, fused operators; for weights in a rotated basis."""

    kv_type: str = "float16"

    def layer(
        self,
        graph: GraphWriter,
        source: ModelSource,
        index: int,
        slot: int,
        residual: Residual,
        widths: LayerWidths | None = None,
    ) -> Residual:
        assert widths is None
        prefix = f"model.layers.{index}"
        total, normed = self._normalise(graph, source, f"{prefix}.input_layernorm.weight", residual)
        pending = self._attention(graph, source, f"{prefix}.self_attn", slot, normed)
        residual = Residual(total=total, pending=pending.value, scale=pending.row_scale)
        total, normed = self._normalise(graph, source, f"{prefix}.post_attention_layernorm.weight", residual)
        pending = self._feed_forward(graph, source, f"{prefix}.mlp", normed)
        return Residual(total=total, pending=pending.value, scale=pending.row_scale)

    def add(self, graph: GraphWriter, residual: Residual, output: str) -> None:
        graph.named_node("ScaleAdd", [residual.total, *_pending(residual)], [output], domain=FENHE)

    def norm(self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual, output: str) -> None:
        inputs = [residual.total, graph.weight(gamma, source.read(gamma)), *_pending(residual)]
        graph.named_node("SkipRmsNorm", inputs, [output], domain=FENHE, epsilon=source.architecture.norm_eps)

    def head(self, graph: GraphWriter, source: ModelSource, value: str, output: str) -> None:
        quantised, scale = graph.nodes("QuantizeRows", [value], 2, domain=FENHE)
        inputs = [quantised, *_columns(graph, "head", source.read(head_weight(source))), scale]
        graph.named_node("QuantizedProduct", inputs, [output], domain=FENHE)

    def _normalise(
        self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual
    ) -> tuple[str, LinearInput]:
        """Add what is pending, normalise and quantise: (sum, quantised normalised sum)."""
        pending = _pending(residual)
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
            num_heads=architecture.num_heads,
            kv_num_heads=architecture.num_kv_heads,
            scale=float(architecture.head_dim**-0.5),
            local_window_size=architecture.sliding_window or -1,
            norm_epsilon=architecture.norm_eps,
        )
        return self._project(graph, source, prefix, ("o_proj",), LinearInput(value=attended, row_scale=scale))

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
        """A product whose row scale is still to be applied; where there is a bias, it has been applied already."""
        name = f"{prefix}.{'_'.join(parts)}"
        result = _product(graph, prepared.value, name, stacked(source, prefix, parts))
        bias = stacked_bias(source, prefix, parts)
        if bias is None:
            return LinearInput(value=result, row_scale=prepared.row_scale)
        scaled = graph.node("Mul", [result, prepared.row_scale or ""])
        return LinearInput(value=graph.node("Add", [scaled, graph.weight(f"{name}.bias", bias)]))


def _pending(residual: Residual) -> list[str]:
    """The further inputs of an operator that first adds the pending value to the running sum."""
    if residual.pending is None:
        return []
    return [residual.pending] if residual.scale is None else [residual.pending, residual.scale]


def _product(graph: GraphWriter, quantised: str, name: str, weight: Matrix) -> str:
    return graph.node("QuantizedProduct", [quantised, *_columns(graph, name, weight)], domain=FENHE)


def _columns(graph: GraphWriter, name: str, weight: Matrix) -> list[str]:
    columns = quantise_columns(weight)
    return [graph.weight(f"{name}.int8", columns.values), graph.weight(f"{name}.scales", columns.scales)]
