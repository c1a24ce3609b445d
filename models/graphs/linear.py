"""How a matrix product is written into a graph at each precision.

A `LinearWriter` prepares its input once (a quantised copy, say) and then serves every matrix that reads it.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.graphs.onnx_graph import MICROSOFT, GraphWriter
from models.graphs.quantise import quantise_blocks_int8, quantise_columns

Matrix = npt.NDArray[np.float32]

ACTIVATION_ZERO_POINT = 128
"""Activations are unsigned around 128: `MatMulIntegerToFloat` is ten times slower with signed ones."""


@dataclass(slots=True, kw_only=True, frozen=True)
class LinearInput:
    """What matrices multiply: a value, and the factor per row that its quantisation took out (None: nothing)."""

    value: str
    row_scale: str | None = None


class LinearWriter(Protocol):
    def prepare(self, graph: GraphWriter, value: str) -> LinearInput:
        """Bring a float value into the form the matrices read."""
        ...

    def multiply(self, graph: GraphWriter, prepared: LinearInput, name: str, weight: Matrix) -> str:
        """`value @ weight.T` as float. Shapes: weight [out, in]."""
        ...


class Fp32Linear:
    """Plain fp32: the numeric reference."""

    def prepare(self, graph: GraphWriter, value: str) -> LinearInput:
        return LinearInput(value=value)

    def multiply(self, graph: GraphWriter, prepared: LinearInput, name: str, weight: Matrix) -> str:
        return graph.node("MatMul", [prepared.value, graph.weight(name, np.ascontiguousarray(weight.T))])


@dataclass(slots=True, kw_only=True, frozen=True)
class BlockLinear:
    """Weight-only blocks of eight bits: the kernel quantises activations per block by itself (accuracy level 4)."""

    block_size: int = 32

    def prepare(self, graph: GraphWriter, value: str) -> LinearInput:
        return LinearInput(value=value)

    def multiply(self, graph: GraphWriter, prepared: LinearInput, name: str, weight: Matrix) -> str:
        blocks = quantise_blocks_int8(weight, self.block_size)
        values = graph.weight(f"{name}.blocks", blocks.values)
        return graph.node(
            "MatMulNBits",
            [prepared.value, values, graph.weight(f"{name}.scales", blocks.scales)],
            domain=MICROSOFT,
            K=weight.shape[1],
            N=weight.shape[0],
            bits=8,
            block_size=self.block_size,
            accuracy_level=4,
        )


class RowInt8Linear:
    """int8 weights, one scale per column, and int8 activations, one scale per row: stock operators alone.

    A scale per row keeps a row's result independent of its neighbours in the batch and of their outliers;
    `DynamicQuantizeMatMul` has one scale per tensor and does neither.
    """

    def prepare(self, graph: GraphWriter, value: str) -> LinearInput:
        last_axis = graph.weight("last_axis", np.array([-1], np.int64))
        largest = graph.node("ReduceMax", [graph.node("Abs", [value]), last_axis], keepdims=1)
        # A row of zeros would divide by zero, and NaN has no defined integer.
        largest = graph.node("Max", [largest, graph.weight("tiny", np.array(1e-20, np.float32))])
        unit = graph.node("Div", [value, largest])
        quantised = graph.node("QuantizeLinear", [unit, *activation_grid(graph)])
        return LinearInput(value=quantised, row_scale=largest)

    def multiply(self, graph: GraphWriter, prepared: LinearInput, name: str, weight: Matrix) -> str:
        scale, zero_point = activation_grid(graph)
        product = integer_product(graph, prepared.value, name, weight, scale, zero_point)
        assert prepared.row_scale is not None
        return graph.node("Mul", [product, prepared.row_scale])


def activation_grid(graph: GraphWriter) -> tuple[str, str]:
    """The fixed scale and zero point of rows divided by their largest magnitude."""
    return graph.weight("unit_scale", np.array(1 / 127, np.float32)), zero_point(graph)


def zero_point(graph: GraphWriter) -> str:
    return graph.weight("zero_point", np.array(ACTIVATION_ZERO_POINT, np.uint8))


def integer_product(graph: GraphWriter, value: str, name: str, weight: Matrix, scale: str, zero: str) -> str:
    """`MatMulIntegerToFloat` of a quantised value with int8 columns. Shapes: weight [out, in]."""
    columns = quantise_columns(weight)
    inputs = [
        value,
        graph.weight(f"{name}.int8", columns.values),
        scale,
        graph.weight(f"{name}.scales", columns.scales),
        zero,
    ]
    return graph.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)
