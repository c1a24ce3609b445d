"""How many neurons each layer keeps, when all layers together may keep so many.

What a layer loses is known for every number of neurons (`Elimination.errors`); what that does to the model's answers
is measured once per layer, with the other layers whole. Between the two a straight line is assumed.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from models.distill.data.examples import Example
from models.distill.loss.narrow_loss import HeadSample, divergence, text_of
from models.distill.network.decoder import Trunk
from models.student.manifest import WIDTH_BLOCK


@torch.no_grad()
def measure_layers(
    trunk: Trunk,
    examples: Sequence[Example],
    downs: Sequence[Tensor],
    orders: Sequence[Tensor],
    head: HeadSample,
    *,
    report: Callable[[int], None] = lambda layer: None,
) -> list[float]:
    """KL(full || model) over the examples' answers with one layer narrow, for each layer in turn. Units: nats.

    Shapes: `downs` one [H, K] per layer, `orders` one [I].
    """
    texts = [text_of([example], 0.0, 0) for example in examples]
    states = [trunk.embed(text.ids_BT.to(trunk.device)) for text in texts]
    last = trunk.architecture.num_layers
    full = [
        trunk.norm(trunk.run(state, range(last)))[text.counts_BT] for text, state in zip(texts, states, strict=True)
    ]
    measured = []
    for layer, (down_HK, order_I) in enumerate(zip(downs, orders, strict=True)):
        kept_K = order_I[: down_HK.shape[1]]
        total, count = 0.0, 0
        for index, (text, full_NH) in enumerate(zip(texts, full, strict=True)):
            attended_BTH = trunk.layer(layer).attended(states[index])
            gated_BTK = trunk.layer(layer).gated(attended_BTH)[..., kept_K]
            narrow_BTH = attended_BTH + linear(gated_BTK, down_HK.to(gated_BTK.dtype))
            narrow_NH = trunk.norm(trunk.run(narrow_BTH, range(layer + 1, last)))[text.counts_BT]
            total += float(divergence(full_NH, narrow_NH, head).sum())
            count += len(full_NH)
            states[index] = trunk.run(states[index], (layer,))
        measured.append(total / count)
        report(layer)
    return measured


def allocate(
    errors: Sequence[Mapping[int, float]], measured: Sequence[float], measured_at: int, total: int, least: int
) -> tuple[int, ...]:
    """Neurons per layer, `total` of all layers together, so that the sum of what the layers cost is least.

    `errors[layer]` by number of neurons; `measured[layer]` is what `measured_at` neurons cost. Takes a block of
    neurons at a time from the layer that misses it least.
    """
    costs = [
        {kept: value / error[measured_at] * cost for kept, value in error.items() if kept % WIDTH_BLOCK == 0}
        for error, cost in zip(errors, measured, strict=True)
    ]
    counts = [max(cost) for cost in costs]
    while sum(counts) > total:
        added = [
            costs[layer][count - WIDTH_BLOCK] - costs[layer][count] if count - WIDTH_BLOCK >= least else float("inf")
            for layer, count in enumerate(counts)
        ]
        counts[added.index(min(added))] -= WIDTH_BLOCK
    return tuple(counts)
