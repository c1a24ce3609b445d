"""Decoder layers over matrices in the blocks of a GGUF file, in fenhe's own operators (`engines/native`).

Rows are quantised to int8 in blocks of 32, weights stay as the file has them. All matrices of a graph lie in one
piece of bytes, the graph's input `weights`, which whoever runs it holds in memory once.
"""

from dataclasses import dataclass

from models.graphs.block_layout import packed
from models.graphs.decoder_graph import GATE_UP, Residual, head_weight, kept, slot_attention_attributes, stacked_bias
from models.graphs.onnx_graph import FENHE, PACKED_WEIGHTS, GraphWriter
from models.graphs.widths import LayerWidths
from models.sources.gguf_blocks import Blocks, Floats, round_to_eight
from models.sources.source import BlockMatrix, BlockSource, ModelSource

OFFSETS = ("offset", "second_offset", "third_offset")


class RoundedMatrix:
    """A matrix that is not stored in blocks, in blocks of eight bits."""

    is_exact = False

    def __init__(self, weights: Floats) -> None:
        """Shapes: weights [rows, depth]."""
        self._weights = weights

    @property
    def shape(self) -> tuple[int, int]:
        return self._weights.shape[0], self._weights.shape[1]

    def read(self, first: int, end: int) -> Blocks:
        return round_to_eight(self._weights[first:end])


@dataclass(slots=True, kw_only=True, frozen=True)
class BlockRows:
    """Values in blocks: integers, a scale for every 32, sums of every 16."""

    q: str
    scale: str
    sums: str

    @property
    def ports(self) -> list[str]:
        return [self.q, self.scale, self.sums]


@dataclass(slots=True, kw_only=True, frozen=True)
class BlockLayerWriter:
    """A `LayerWriter`. Students with widths are not written so."""

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
        assert widths is None
        prefix = f"model.layers.{index}"
        total, normed = self._normalise(graph, source, f"{prefix}.input_layernorm.weight", residual)
        attended = self._attention(graph, source, f"{prefix}.self_attn", slot, normed)
        if keeps_rows:
            total = kept(graph, total)
            attended = BlockRows(
                q=kept(graph, attended.q), scale=kept(graph, attended.scale), sums=kept(graph, attended.sums)
            )
        residual = Residual(total=total, pending=_project(graph, source, f"{prefix}.self_attn", ("o_proj",), attended))
        total, normed = self._normalise(graph, source, f"{prefix}.post_attention_layernorm.weight", residual)
        gate_up = _project(graph, source, f"{prefix}.mlp", GATE_UP, normed)
        product = _in_blocks(graph, "SwigluQuantizeBlocks", [gate_up])
        return Residual(total=total, pending=_project(graph, source, f"{prefix}.mlp", ("down_proj",), product))

    def add(self, graph: GraphWriter, residual: Residual, output: str) -> None:
        if residual.pending is None:
            graph.named_node("Identity", [residual.total], [output])
        else:
            graph.named_node("ScaleAdd", [residual.total, residual.pending], [output], domain=FENHE)

    def norm(self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual, output: str) -> None:
        inputs = [residual.total, graph.constant(gamma, source.read(gamma)), *residual.pending_inputs]
        graph.named_node("SkipRmsNorm", inputs, [output], domain=FENHE, epsilon=source.architecture.norm_eps)

    def head(self, graph: GraphWriter, source: ModelSource, value: str, output: str) -> None:
        rows = _in_blocks(graph, "QuantizeBlocks", [value])
        _multiply(graph, source, (head_weight(source),), rows, output)

    def _normalise(
        self, graph: GraphWriter, source: ModelSource, gamma: str, residual: Residual
    ) -> tuple[str, BlockRows]:
        """Add what is pending, normalise and quantise: (sum, quantised normalised sum)."""
        pending = residual.pending_inputs
        q, scale, sums, *total = graph.nodes(
            "SkipRmsNormQuantizeBlocks",
            [residual.total, graph.constant(gamma, source.read(gamma)), *pending],
            4 if pending else 3,
            domain=FENHE,
            epsilon=source.architecture.norm_eps,
        )
        return (total[0] if total else residual.total), BlockRows(q=q, scale=scale, sums=sums)

    def _attention(
        self, graph: GraphWriter, source: ModelSource, prefix: str, slot: int, normed: BlockRows
    ) -> BlockRows:
        architecture = source.architecture
        parts = ("q_proj", "k_proj", "v_proj")
        packed_qkv = _multiply(graph, source, _names(prefix, parts), normed)
        bias = stacked_bias(source, prefix, parts)
        norms = [f"{prefix}.q_norm.weight", f"{prefix}.k_norm.weight"] if architecture.has_qk_norm else []
        outputs = [f"{prefix}.attended{part}" for part in ("", "_scale", "_sums")]
        graph.named_node(
            "BlockSlotAttention",
            [
                *(packed_qkv, ""),
                *(f"past_key_{slot}", f"past_value_{slot}"),
                *("last_positions", "cos", "sin"),
                "" if bias is None else graph.constant(f"{prefix}.qkv.bias", bias),
                *(graph.constant(name, source.read(name)) for name in norms),
            ],
            [*outputs, f"present_key_{slot}", f"present_value_{slot}"],
            domain=FENHE,
            **slot_attention_attributes(architecture),
        )
        return BlockRows(q=outputs[0], scale=outputs[1], sums=outputs[2])


def matrix_of(source: ModelSource, name: str) -> BlockMatrix:
    """A matrix in blocks: the file's own where it has them."""
    return source.matrix(name) if isinstance(source, BlockSource) else RoundedMatrix(source.read(name))


def _in_blocks(graph: GraphWriter, kind: str, inputs: list[str]) -> BlockRows:
    q, scale, sums = graph.nodes(kind, inputs, 3, domain=FENHE)
    return BlockRows(q=q, scale=scale, sums=sums)


def _names(prefix: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}.{part}.weight" for part in parts)


def _project(graph: GraphWriter, source: ModelSource, prefix: str, parts: tuple[str, ...], rows: BlockRows) -> str:
    result = _multiply(graph, source, _names(prefix, parts), rows)
    bias = stacked_bias(source, prefix, parts)
    if bias is None:
        return result
    return graph.node("Add", [result, graph.constant(f"{prefix}.{'_'.join(parts)}.bias", bias)])


def _multiply(
    graph: GraphWriter, source: ModelSource, names: tuple[str, ...], rows: BlockRows, output: str | None = None
) -> str:
    """The products with all named matrices side by side."""
    places = [graph.packed(name, packed(matrix_of(source, name))) for name in names]
    offsets = dict(zip(OFFSETS, [*places, -1, -1], strict=False))
    inputs = [*rows.ports, PACKED_WEIGHTS]
    if output is None:
        return graph.node("BlockProduct", inputs, domain=FENHE, **offsets)
    graph.named_node("BlockProduct", inputs, [output], domain=FENHE, **offsets)
    return output
