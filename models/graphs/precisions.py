"""The precisions a student can be built in. Those that name the same `weights` share their weights files."""

from collections.abc import Iterable
from dataclasses import dataclass

from models.graphs.block_graph import BlockLayerWriter
from models.graphs.decoder_graph import LayerWriter, StockLayerWriter
from models.graphs.linear import BlockLinear, Fp32Linear, RowInt8Linear
from models.graphs.native_graph import NativeLayerWriter


@dataclass(slots=True, kw_only=True, frozen=True)
class Precision:
    """`needs_native` graphs run only where fenhe's own operators were compiled.

    `is_rotated`: built from the weights in another basis (`models/graphs/rotate.py`).
    `keeps_blocks`: the matrices are a GGUF file's own blocks, packed for native operators in one file that is read into
    memory whole; for GGUF files and students without widths alone.
    Other precisions with native operators have a cheap head too (`models/graphs/cheap_head.py`).
    """

    weights: str
    writer: LayerWriter
    description: str
    needs_native: bool = False
    is_rotated: bool = False
    keeps_blocks: bool = False

    @property
    def has_cheap_head(self) -> bool:
        return self.needs_native and not self.keeps_blocks


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(
        weights="fp32",
        writer=StockLayerWriter(linear=Fp32Linear(), head_linear=Fp32Linear(), keeps_neuron_order=True),
        description="the reference",
    ),
    "int8": Precision(
        weights="int8",
        writer=StockLayerWriter(linear=BlockLinear(), head_linear=BlockLinear()),
        description="int8 weights in blocks of 32, float activations",
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
    "gguf-native": Precision(
        weights="gguf",
        writer=BlockLayerWriter(),
        description="the blocks of a GGUF file as they are, int8 activations in blocks of 32, fenhe's own operators",
        needs_native=True,
        keeps_blocks=True,
    ),
}
DEFAULT_PRECISIONS = ("w8a8-native", "w8a8")
REMOVED = {
    "int4": "it lost 7 % of cross-entropy; four bits without loss are gguf-native, built from a 4-bit GGUF file "
    "(Q4_0, Q4_K_M, ...)"
}
"""Precisions of earlier versions, and what to take instead. Students may still hold graphs of them."""


def unknown_precisions(names: Iterable[str]) -> str | None:
    """What is wrong with these names, and what to take instead; None where all are known."""
    unknown = [name for name in names if name not in PRECISIONS]
    if not unknown:
        return None
    gone = [f"{name} was removed: {REMOVED[name]}" for name in unknown if name in REMOVED]
    never = [name for name in unknown if name not in REMOVED]
    return "; ".join([*gone, *([f"no {', '.join(never)}"] if never else []), f"there are {', '.join(PRECISIONS)}"])
