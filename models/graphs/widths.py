"""The feed-forward of a module at several widths: which rows of a pass run which neurons, with which matrices.

A layer's neurons are stored in its order, so that every width's are the first ones, and in blocks: the neurons that
all rows run, then those that only wider rows run, up to those of the whole width. The rows of a pass are sorted widest
first; its input `rows_by_width` [1 + widths] counts them: entry 0 those of the whole width, entry j those at least as
wide as the j-th width (widest first), the last one all. So a block's rows are the first ones, and rows of one width
lie side by side. Every width multiplies its neurons with an output matrix of its own, and has perhaps an output matrix
of its own in attention too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROWS_BY_WIDTH = "rows_by_width"


@dataclass(slots=True, kw_only=True, frozen=True)
class NeuronBlock:
    """Neurons `first` to `end` (exclusive) in the layer's order, run by the first `rows_by_width[entry]` rows."""

    first: int
    end: int
    entry: int

    @property
    def size(self) -> int:
        return self.end - self.first


@dataclass(slots=True, kw_only=True, frozen=True)
class OutputRun:
    """Rows of the widths `first` to `last` (both included) share an output matrix in attention: that of width `first`
    where it is `own`, else the model's."""

    first: int
    last: int
    own: bool


@dataclass(slots=True, kw_only=True, frozen=True)
class LayerWidths:
    """The widths of one layer. Entry 0 of `neurons` and `has_own_output` is the whole width, then come the widths,
    widest first.

    `order` has the model's neuron at each place of the order in which the source has them. Shapes: [intermediate].
    """

    neurons: tuple[int, ...]
    has_own_output: tuple[bool, ...]
    order: npt.NDArray[np.int64]

    @property
    def blocks(self) -> tuple[NeuronBlock, ...]:
        """The blocks of neurons, those that all rows run first; none is empty."""
        found, first = [], 0
        for entry in reversed(range(len(self.neurons))):
            if self.neurons[entry] > first:
                found.append(NeuronBlock(first=first, end=self.neurons[entry], entry=entry))
                first = self.neurons[entry]
        return tuple(found)

    @property
    def output_runs(self) -> tuple[OutputRun, ...]:
        """Which rows share an output matrix in attention, from the first row to the last."""
        starts = [
            entry for entry, own in enumerate(self.has_own_output) if not entry or own or self.has_own_output[entry - 1]
        ]
        ends = [*starts[1:], len(self.neurons)]
        return tuple(
            OutputRun(first=first, last=end - 1, own=self.has_own_output[first])
            for first, end in zip(starts, ends, strict=True)
        )

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """The inverse of `order`: at which place each of the model's neurons is. Shapes: [intermediate]."""
        return np.argsort(self.order)


def own_down(layer: int, entry: int) -> str:
    """The name in a source of the output matrix that the width at `entry` multiplies its neurons with.

    Shapes: [hidden, neurons]; its columns are in the layer's order.
    """
    return f"model.layers.{layer}.mlp.widths.{entry}.down_proj.weight"


def own_output(layer: int, entry: int) -> str:
    """The name in a source of attention's output matrix for the width at `entry`. Shapes: [hidden, q_size]."""
    return f"model.layers.{layer}.self_attn.widths.{entry}.o_proj.weight"


def block_name(layer: int, block: NeuronBlock) -> str:
    """The name in a graph's weights of the gate and up rows of a block."""
    return f"model.layers.{layer}.mlp.gate_proj_up_proj.{block.first}"


_BLOCK = re.compile(r"model\.layers\.(\d+)\.mlp\.gate_proj_up_proj\.(\d+)(\..*)?")
_OWN = re.compile(r"model\.layers\.\d+\.(?:mlp|self_attn)\.widths\.(\d+)\..*")
_WHOLE_DOWN = re.compile(r"model\.layers\.\d+\.mlp\.down_proj(\..*)?")
_SHARED_OUTPUT = re.compile(r"model\.layers\.\d+\.self_attn\.o_proj(\..*)?")


def is_read_at(entry: int, name: str, neurons: Sequence[int], has_own_output: bool) -> bool:
    """Whether rows of the width at `entry` read the tensor of this name in a module's weights. `neurons` are those of
    the width, by layer."""
    if found := _BLOCK.fullmatch(name):
        return neurons[int(found[1])] > int(found[2])
    if found := _OWN.fullmatch(name):
        return int(found[1]) == entry
    if _WHOLE_DOWN.fullmatch(name):
        return not entry
    return not (has_own_output and _SHARED_OUTPUT.fullmatch(name))
