"""The graph of the cheap head: previews of all logits from a few dimensions, exact logits for the tokens that matter.

It reads and writes what the exact head does: `normed` [rows, hidden_size] -> `logits` [rows, vocab]. Only precisions
with native operators have one: stock operators have no way to compute a few chosen outputs of a product that would be
faster than all of them.

Source: SVD-softmax (Shim et al., NeurIPS 2017) for the preview; FR-Spec (arXiv 2502.14856) for the frequent tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.decoder_graph import LayerWriter, head_weight
from models.graphs.onnx_graph import FENHE, GraphWriter, Kind, TensorSpec
from models.graphs.quantise import quantise_columns
from models.graphs.rotate import HEAD_PROJECT
from models.sources.source import ModelSource

HEAD_PREVIEW = "cheap_head.preview.weight"
HEAD_BIAS = "cheap_head.preview.bias"
"""With `HEAD_PROJECT` the tensors of a source that has a cheap head: [vocab, rank], [vocab] and [rank, hidden]."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Candidates:
    """Which tokens are exact: those of `frequent`, and of the others those whose preview is at most `reach` nats below
    the best, `num_candidates` at most."""

    frequent: Sequence[int]
    num_candidates: int
    reach: float


def write_cheap_head(
    graph: GraphWriter, writer: LayerWriter, source: ModelSource, *, candidates: Candidates
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Write the cheap head in native operators, whatever `writer` is. Returns the graph's inputs and outputs."""
    x, x_scale = graph.nodes("QuantizeRows", ["normed"], 2, domain=FENHE)
    project = quantise_columns(source.read(HEAD_PROJECT))
    weights = [graph.weight("project.int8", project.values), graph.weight("project.scales", project.scales)]
    projected = graph.node("QuantizedProduct", [x, *weights, x_scale], domain=FENHE)
    p, p_scale = graph.nodes("QuantizeRows", [projected], 2, domain=FENHE)
    preview, exact = quantise_columns(source.read(HEAD_PREVIEW)), quantise_columns(source.read(head_weight(source)))
    graph.named_node(
        "CandidateLogits",
        [
            *(x, x_scale, p, p_scale),
            *(graph.weight("preview.int8", preview.values), graph.weight("preview.scales", preview.scales)),
            graph.weight("preview.bias", source.read(HEAD_BIAS)),
            graph.weight("rows.int8", np.ascontiguousarray(exact.values.T)),
            graph.weight("rows.scales", exact.scales),
            graph.weight("frequent", np.array(candidates.frequent, np.int32)),
        ],
        ["logits"],
        domain=FENHE,
        num_candidates=candidates.num_candidates,
        reach=candidates.reach,
    )
    architecture = source.architecture
    normed = TensorSpec(name="normed", kind=Kind.FLOAT, dimensions=("rows", architecture.hidden_size))
    logits = TensorSpec(name="logits", kind=Kind.FLOAT, dimensions=("rows", architecture.vocab_size))
    return [normed], [logits]
