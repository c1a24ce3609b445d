"""How far a narrow path's next-token distribution is from full depth and width, over a sample of the vocabulary.

Tensor names carry shapes: B sequences, T positions, H hidden, N positions that count, V vocabulary, M of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from models.distill.data.examples import Example
from models.distill.loss.head import subset_vocabulary
from models.distill.network.decoder import Trunk, padded


@dataclass(slots=True, kw_only=True, frozen=True)
class Text:
    """Some examples side by side. Shapes: `ids_BT`, `counts_BT` (where a position counts), `weight_N`."""

    ids_BT: Tensor
    counts_BT: Tensor
    weight_N: Tensor
    num_tokens: int


def text_of(examples: Sequence[Example], prompt_weight: float, prefix: int) -> Text:
    """A position counts by the token that follows it: an answer's and plain text's 1, a prompt's `prompt_weight`, the
    first `prefix` tokens of a prompt (the system prompt, the same everywhere) nothing.
    """
    ids_BT, is_real_BT = padded([example.token_ids for example in examples])
    weight_BT = torch.zeros(ids_BT.shape)
    for row, example in enumerate(examples):
        answer = max(example.num_prompt_tokens - 1, 0)
        weight_BT[row, max(prefix - 1, 0) : answer] = prompt_weight
        weight_BT[row, answer : example.num_tokens - 1] = 1.0
    counts_BT = weight_BT > 0
    return Text(ids_BT=ids_BT, counts_BT=counts_BT, weight_N=weight_BT[counts_BT], num_tokens=int(is_real_BT.sum()))


@dataclass(slots=True, kw_only=True, frozen=True)
class HeadSample:
    """Rows of the head that a loss sees. `raise_M` is added to their logits: the random ones stand for all others.

    Shapes: `head_MH`, `raise_M`.
    """

    head_MH: Tensor
    raise_M: Tensor


def sample_head(
    trunk: Trunk, frequent_F: Tensor, ids_BT: Tensor, num_random: int, generator: torch.Generator
) -> HeadSample:
    """The frequent tokens, the batch's own, and `num_random` of the rest."""
    fixed = torch.cat((frequent_F, ids_BT.flatten())).unique()  # type: ignore[no-untyped-call]
    vocab_size = len(trunk.head_VH)
    chosen_M = subset_vocabulary(fixed, fixed, num_random, vocab_size, generator)
    num_drawn = len(chosen_M) - len(fixed)
    raise_M = torch.zeros(len(chosen_M))
    if num_drawn:
        is_drawn = ~torch.isin(chosen_M, fixed)
        raise_M[is_drawn] = torch.tensor((vocab_size - len(fixed)) / num_drawn).log()
    device = trunk.device
    return HeadSample(head_MH=trunk.head_VH[chosen_M.to(device)], raise_M=raise_M.to(device))


def divergence(full_NH: Tensor, narrow_NH: Tensor, head: HeadSample) -> Tensor:
    """KL(full || narrow) over the sampled vocabulary. Shapes: normed states [N, H]; returns [N]. Units: nats."""
    log_p, log_q = (
        (linear(state, head.head_MH).float() + head.raise_M).log_softmax(dim=-1) for state in (full_NH, narrow_NH)
    )
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
