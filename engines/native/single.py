"""Runs one native operator alone, for the trial and the tests. Inputs keep their order; None leaves one out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

KV_OUTPUTS = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT16)
BLOCK_OUTPUTS = (TensorProto.INT8, TensorProto.FLOAT, TensorProto.INT32)
OUTPUT_TYPES = {
    "SkipRmsNormQuantize": (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT),
    "SkipRmsNorm": (TensorProto.FLOAT, TensorProto.FLOAT),
    "ScaleAdd": (TensorProto.FLOAT,),
    "SwigluQuantize": (TensorProto.UINT8, TensorProto.FLOAT),
    "NestedSwigluQuantize": (TensorProto.UINT8, TensorProto.FLOAT),
    "QuantizeRows": (TensorProto.UINT8, TensorProto.FLOAT),
    "QuantizedProduct": (TensorProto.FLOAT,),
    "NestedProduct": (TensorProto.FLOAT,),
    "WidthProduct": (TensorProto.FLOAT,),
    "CandidateLogits": (TensorProto.FLOAT,),
    "SlotAttention": KV_OUTPUTS,
    "SkipRmsNormQuantizeBlocks": (*BLOCK_OUTPUTS, TensorProto.FLOAT),
    "SwigluQuantizeBlocks": BLOCK_OUTPUTS,
    "QuantizeBlocks": BLOCK_OUTPUTS,
    "BlockProduct": (TensorProto.FLOAT,),
    "BlockSlotAttention": (*BLOCK_OUTPUTS, TensorProto.FLOAT16, TensorProto.FLOAT16),
}


def operator_session(
    library: Path,
    operator: str,
    inputs: Mapping[str, np.ndarray | None],
    num_outputs: int,
    *,
    attributes: Mapping[str, float] | None = None,
    num_threads: int = 2,
) -> onnxruntime.InferenceSession:
    """A session of one node with outputs named o0, o1 and so on. `inputs` give names and types; shapes stay free."""
    given = {name: value for name, value in inputs.items() if value is not None}
    names = [name if name in given else "" for name in inputs]
    outputs = [f"o{i}" for i in range(num_outputs)]
    node = helper.make_node(operator, names, outputs, domain="fenhe")
    node.attribute.extend(helper.make_attribute(name, value) for name, value in (attributes or {}).items())
    graph = helper.make_graph(
        [node],
        operator,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
            for name, value in given.items()
        ],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in zip(outputs, OUTPUT_TYPES[operator], strict=False)
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("fenhe", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_operator(
    library: Path,
    operator: str,
    inputs: Mapping[str, np.ndarray | None],
    num_outputs: int,
    *,
    attributes: Mapping[str, float] | None = None,
    num_threads: int = 2,
) -> list[Any]:
    """The outputs of one node on these inputs. Shapes: as the package's docstring has them."""
    session = operator_session(library, operator, inputs, num_outputs, attributes=attributes, num_threads=num_threads)
    return list(session.run(None, {name: value for name, value in inputs.items() if value is not None}))
