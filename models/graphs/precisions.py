"""The precisions a student can be built in. Those that name the same `weights` share their weights files."""

from dataclasses import dataclass

from models.graphs.decoder_graph import LayerWriter, StockLayerWriter
from models.graphs.linear import BlockLinear, Fp32Linear, RowInt8Linear
from models.graphs.native_graph import NativeLayerWriter


@dataclass(slots=True, kw_only=True, frozen=True)
class Precision:
    """`needs_native` graphs run only where fenhe's own operators were compiled.

    `is_faithful`: cross-entropy stays within 1 % of fp32 (docs/precisions.md has the figures), so that it may be
    chosen for speed alone. `is_rotated`: built from the weights in another basis (`models/graphs/rotate.py`).
    Precisions with native operators have a cheap head too (`models/graphs/cheap_head.py`).
    """

    weights: str
    writer: LayerWriter
    description: str
    needs_native: bool = False
    is_faithful: bool = True
    is_rotated: bool = False


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(
        weights="fp32",
        writer=StockLayerWriter(linear=Fp32Linear(), head_linear=Fp32Linear(), keeps_neuron_order=True),
        description="the reference",
    ),
    "int8": Precision(
        weights="int8",
        writer=StockLayerWriter(linear=BlockLinear(bits=8), head_linear=BlockLinear(bits=8)),
        description="int8 weights in blocks of 32, float activations",
    ),
    "int4": Precision(
        weights="int4",
        writer=StockLayerWriter(linear=BlockLinear(bits=4), head_linear=BlockLinear(bits=8)),
        description="int4 weights in blocks of 32, int8 head, float activations: the smallest",
        is_faithful=False,
    ),
    "w8a8": Precision(
        weights="w8a8",
        writer=StockLayerWriter(linear=RowInt8Linear(), head_linear=RowInt8Linear(), mixes_down_input=True),
        description="int8 weights per column, int8 activations per row, stock operators",
        is_rotated=True,
    ),
    "w8a8-native": Precision(
        weights="w8a8",
        writer=NativeLayerWriter(),
        description="the same numbers with fenhe's own fused operators and an fp16 KV cache: the fastest",
        needs_native=True,
        is_rotated=True,
    ),
}
DEFAULT_PRECISIONS = ("w8a8-native", "w8a8", "int4")
