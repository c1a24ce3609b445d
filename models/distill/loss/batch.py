"""What one pass trains on: padded trunk states, and how much each token counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.distill.data.examples import Example
from models.distill.teacher.cache import CachedTeacher


@dataclass(slots=True, kw_only=True, frozen=True)
class Batch:
    """B examples of one task, T tokens the longest; N positions count for the loss.

    Shapes: `is_real_BT`, `counts_BT` [B, T]; `rows_N` in the teacher's cache, `target_N` the tokens that follow,
    `weight_N` with a mean of about one.
    """

    indices: tuple[int, ...]
    task: str
    is_real_BT: Tensor
    counts_BT: Tensor
    rows_N: Tensor
    target_N: Tensor
    weight_N: Tensor

    @property
    def num_tokens(self) -> int:
        """Real tokens, whether they count or not."""
        return int(self.is_real_BT.sum())


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many tokens all examples begin with: a system prompt, which teaches nothing."""
    first, last = (pick(example.token_ids for example in examples) for pick in (min, max))
    length = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        length += 1
    return length


def make_batch(
    indices: Sequence[int], examples: Sequence[Example], teacher: CachedTeacher, prefix: int, prompt_weight: float
) -> Batch | None:
    """A batch of one task's examples; None when no token counts. Prompt tokens after `prefix` count `prompt_weight`."""
    chosen = [examples[index] for index in indices]
    length = max(example.num_tokens for example in chosen)
    is_real_BT = torch.zeros(len(chosen), length, dtype=torch.bool)
    weight_BT = torch.zeros(len(chosen), length)
    rows_BT = torch.zeros(len(chosen), length, dtype=torch.long)
    target_BT = torch.zeros(len(chosen), length, dtype=torch.long)
    for row, (index, example) in enumerate(zip(indices, chosen, strict=True)):
        size, answer = example.num_tokens, max(example.num_prompt_tokens - 1, 0)
        is_real_BT[row, :size] = True
        weight_BT[row, max(prefix - 1, 0) : answer] = prompt_weight
        weight_BT[row, answer : size - 1] = 1.0
        rows_BT[row, :size] = torch.arange(teacher.offsets[index], teacher.offsets[index + 1])
        target_BT[row, : size - 1] = torch.tensor(example.token_ids[1:])
    weight_BT[:, -1] = 0.0
    counts_BT = (weight_BT > 0) & is_real_BT
    if not counts_BT.any():
        return None
    weight_N = weight_BT[counts_BT]
    return Batch(
        indices=tuple(indices),
        task=chosen[0].task,
        is_real_BT=is_real_BT,
        counts_BT=counts_BT,
        rows_N=rows_BT[counts_BT],
        target_N=target_BT[counts_BT],
        weight_N=weight_N / weight_N.mean(),
    )


def states(teacher: CachedTeacher, batch: Batch, layer: int, device: torch.device) -> Tensor:
    """The trunk's states after `layer` layers, padded with zeros. Shapes: returns [B, T, H], bf16."""
    cached = teacher.states[layer]
    num_rows, length = batch.is_real_BT.shape
    hidden_BTH = torch.zeros(num_rows, length, cached.shape[1], dtype=cached.dtype)
    for row, index in enumerate(batch.indices):
        first, end = teacher.offsets[index], teacher.offsets[index + 1]
        hidden_BTH[row, : end - first] = cached[first:end]
    return hidden_BTH.to(device)
