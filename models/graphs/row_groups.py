"""Rows of a pass cut by width with stock operators; `models/graphs/widths.py` says how they are sorted and counted."""

from dataclasses import dataclass

import numpy as np

from models.graphs.linear import LinearInput
from models.graphs.onnx_graph import GraphWriter, Kind
from models.graphs.widths import ROWS_BY_WIDTH


@dataclass(slots=True, kw_only=True, frozen=True)
class RowGroups:
    """Cuts values whose first axis is the rows of a pass. There are `num_entries` widths, the whole one included."""

    graph: GraphWriter
    num_entries: int

    def first(self, value: LinearInput, entry: int) -> LinearInput:
        """The rows that are at least as wide as the width at `entry`."""
        return self.between(value, 0, entry)

    def between(self, value: LinearInput, first: int, last: int) -> LinearInput:
        """The rows of the widths `first` to `last`, both included."""
        scale = value.row_scale
        return LinearInput(
            value=self._cut(value.value, first, last),
            row_scale=None if scale is None else self._cut(scale, first, last),
        )

    def split(self, value: str, entry: int) -> list[str]:
        """What `first` gives, cut into one value for each width up to `entry`."""
        if not entry:
            return [value]
        return self.graph.nodes("Split", [value, self._sizes(entry + 1)], entry + 1, axis=0)

    def joined(self, values: list[str]) -> str:
        """The rows of all widths again, from a value for each part of them, in order."""
        return self.graph.node("Concat", values, axis=0)

    def _cut(self, value: str, first: int, last: int) -> str:
        if not first and last == self.num_entries - 1:
            return value
        start = self._end(first - 1) if first else self._constant(0)
        return self.graph.node("Slice", [value, start, self._end(last), self._constant(0)])

    def _end(self, entry: int) -> str:
        """One past the last row at least as wide as the width at `entry`. Shapes: [1]."""
        bounds = [self._constant(bound) for bound in (entry, entry + 1, 0)]
        return self.graph.node_once(f"rows_to_{entry}", "Slice", [ROWS_BY_WIDTH, *bounds])

    def _sizes(self, count: int) -> str:
        """How many rows have each of the `count` widest widths. Shapes: [count], int64."""
        zero = self._constant(0)
        starts = self.graph.node_once("row_starts", "Concat", [zero, ROWS_BY_WIDTH], axis=0)
        counts = [self._constant(bound) for bound in (0, count, 0)]
        firsts = self.graph.node_once(f"first_starts_{count}", "Slice", [starts, *counts])
        ends = self.graph.node_once(f"first_ends_{count}", "Slice", [ROWS_BY_WIDTH, *counts])
        sizes = self.graph.node_once(f"row_sizes_{count}", "Sub", [ends, firsts])
        return self.graph.node_once(f"row_splits_{count}", "Cast", [sizes], to=Kind.INT64)

    def _constant(self, value: int) -> str:
        return self.graph.weight(f"row_constant_{value}", np.array([value], np.int32))
