"""How the feed-forward neurons of every layer move together, measured while the teacher reads text.

Tensor names carry shapes: B sequences, T positions, I neurons of a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.distill.data.examples import Example, batches
from models.distill.network.decoder import Trunk, padded


@dataclass(slots=True, kw_only=True, frozen=True)
class Calibration:
    """Second moments of what the neurons say: `moments[layer]` is the weighted mean of x x^T over positions.

    Shapes: one [I, I] per layer, fp32.
    """

    moments: tuple[Tensor, ...]
    num_tokens: int


@torch.no_grad()
def calibrate(
    trunk: Trunk,
    examples: Sequence[Example],
    *,
    prompt_weight: float,
    batch_tokens: int = 2048,
    report: Callable[[int], None] = lambda num_tokens: None,
) -> Calibration:
    """Run the teacher over the examples. A prompt's token counts `prompt_weight`, an answer's and plain text's 1."""
    architecture = trunk.architecture
    size = architecture.intermediate_size
    moments = [torch.zeros(size, size, device=trunk.device) for _ in range(architecture.num_layers)]
    total_weight, num_tokens = 0.0, 0
    for indices in batches([example.num_tokens for example in examples], batch_tokens, seed=0, epoch=0):
        chosen = [examples[index] for index in indices]
        ids_BT, is_real_BT = padded([example.token_ids for example in chosen])
        weight_BT = is_real_BT.float()
        for row, example in enumerate(chosen):
            weight_BT[row, : example.num_prompt_tokens] = prompt_weight
        scale_N1 = weight_BT[is_real_BT].sqrt()[:, None].to(trunk.device)
        hidden_BTH = trunk.embed(ids_BT.to(trunk.device))
        for layer, moment in enumerate(moments):
            decoder = trunk.layer(layer)
            hidden_BTH = decoder.attended(hidden_BTH)
            gated_BTI = decoder.gated(hidden_BTH)
            hidden_BTH = hidden_BTH + decoder.down(gated_BTI)
            said_NI = gated_BTI[is_real_BT.to(trunk.device)].float() * scale_N1
            moment.addmm_(said_NI.T, said_NI)
        total_weight += float(weight_BT.sum())
        num_tokens += int(is_real_BT.sum())
        report(num_tokens)
    return Calibration(moments=tuple(moment / total_weight for moment in moments), num_tokens=num_tokens)
