"""The losses of one exit on one batch, by name, and their weighted sum.

The head is most of an exit's cost. So the losses see a subset of the vocabulary: what the teacher finds likely
anywhere in the batch, the targets, and some random ids that stand for all the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.nn.functional import linear

from models.distill.loss.batch import Batch, states
from models.distill.loss.head import (
    chunked,
    jensen_shannon,
    positions_in,
    reverse_kl,
    soft_target_kl,
    subset_vocabulary,
    task_cross_entropy,
    top_k_kl,
)
from models.distill.loss.hidden import attention_transfer, hidden_cosine, hidden_mse, module_alignment
from models.distill.network.decoder import Trunk
from models.distill.network.exit_model import ExitModel
from models.distill.teacher.cache import CachedTeacher
from models.distill.teacher.switch import ensemble_logits

CHUNK_TOKENS = 512
SUBSET_TOKENS = 512
"""How many of a batch's positions the likely tokens are taken from: more would add few, since text repeats itself."""

LOWEST_LOGPROB = -30.0

SOFT_LOSSES = ("soft_target_kl", "reverse_kl", "jensen_shannon")
HEAD_LOSSES = (*SOFT_LOSSES, "task_cross_entropy")
HIDDEN_LOSSES = ("hidden_mse", "hidden_cosine")


@dataclass(slots=True, kw_only=True, frozen=True)
class Head:
    """The M rows of the head that a batch's losses see, of V.

    `bias_M` is added to a random id's logit: the logarithm of how many ids it stands for.
    `soft` are the teacher's soft targets: its logits, or for its K likeliest tokens their places in M and their
    log-probabilities.

    Shapes: `weight_MH` [M, H], `bias_M` [M], `soft` [N, M] or twice [N, K], `target_N` [N], the places in M.
    """

    weight_MH: Tensor
    bias_M: Tensor
    soft: tuple[Tensor, ...]
    target_N: Tensor


@dataclass(slots=True, kw_only=True, frozen=True)
class Teacher:
    """A model and its cached predictions on the training text."""

    trunk: Trunk
    cache: CachedTeacher

    def last_states(self, batch: Batch) -> Tensor:
        """The head's input at the positions that count. Shapes: returns [N, H of this teacher]."""
        states_NH = self.cache.states[self.trunk.architecture.num_layers][batch.rows_N]
        return self.trunk.norm(states_NH.to(self.trunk.device, self.trunk.dtype))

    def logits(self, batch: Batch, ids_M: Tensor) -> Tensor:
        """Shapes: returns [N, M]."""
        last_NH = self.last_states(batch)
        return linear(last_NH, self.trunk.head_VH[ids_M.to(self.trunk.device)].to(last_NH.dtype))


class Objective:
    """Prepares a batch once for all exits, and computes an exit's terms on it. `own` runs the student's trunk.

    With `top_k` the teacher is known by its cached likeliest tokens alone, which saves its pass through the head.
    """

    def __init__(self, own: Teacher, head_tokens: int | None, *, top_k: bool = False) -> None:
        self.own = own
        self._trunk = own.trunk
        self._head_tokens = head_tokens
        self._top_k = top_k

    def head(self, batch: Batch, generator: torch.Generator, teachers: Sequence[Teacher]) -> Head:
        """The subset for this batch and the soft targets on it: one teacher's, or the mean of several."""
        device = self._trunk.device
        top_ids_NK = self.own.cache.top_ids[batch.rows_N].long()
        ids_M, bias_M = self._subset(top_ids_NK, batch.target_N, generator)
        soft: tuple[Tensor, ...]
        if self._top_k:
            soft = self._top_targets(batch, top_ids_NK, ids_M)
        else:
            logits = [teacher.logits(batch, ids_M).to(device) for teacher in teachers]
            soft = (logits[0] if len(logits) == 1 else ensemble_logits(logits),)
        return Head(
            weight_MH=self._trunk.head_VH[ids_M.to(device)] if self._head_tokens is not None else self._trunk.head_VH,
            bias_M=bias_M.to(device),
            soft=soft,
            target_N=positions_in(ids_M, batch.target_N).to(device),
        )

    def _top_targets(self, batch: Batch, top_ids_NK: Tensor, ids_M: Tensor) -> tuple[Tensor, Tensor]:
        """Likely ids that the subset lacks get (almost) no probability, which leaves theirs to the tail."""
        places = positions_in(ids_M, top_ids_NK).clamp_max(len(ids_M) - 1)
        is_there = ids_M[places] == top_ids_NK
        logprobs_NK = self.own.cache.top_logprobs[batch.rows_N].float().masked_fill(~is_there, LOWEST_LOGPROB)
        device = self._trunk.device
        return places.to(device), logprobs_NK.to(device)

    def _subset(self, top_ids_NK: Tensor, target_N: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        vocab_size = self._trunk.head_VH.shape[0]
        if self._head_tokens is None:
            return torch.arange(vocab_size), torch.zeros(vocab_size)
        likely = top_ids_NK
        if not self._top_k:
            likely = likely[torch.randperm(len(top_ids_NK), generator=generator)[:SUBSET_TOKENS]]
        is_likely_V = torch.zeros(vocab_size, dtype=torch.bool)
        is_likely_V[likely.flatten()] = True
        is_likely_V[target_N] = True
        ids_M = subset_vocabulary(likely, target_N, self._head_tokens, vocab_size, generator)
        num_likely = int(is_likely_V.sum())
        num_random = len(ids_M) - num_likely
        bias_M = torch.zeros(len(ids_M))
        if num_random:
            bias_M[~is_likely_V[ids_M]] = log((vocab_size - num_likely) / num_random)
        return ids_M, bias_M

    def terms(
        self,
        exit: ExitModel,
        hidden_BTH: Tensor,
        batch: Batch,
        head: Head,
        weights: Mapping[str, float],
        temperature: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of one exit. Shapes: returns their weighted sum [N], and each of them [N] without its gradient."""
        counts = batch.counts_BT.to(hidden_BTH.device)
        entered_BTH = exit.enter(hidden_BTH)
        normed_NH = exit.leave(entered_BTH)[counts]
        total, found = self._head_terms(normed_NH, head, weights, temperature)
        for name, value_N in self._hidden_terms(exit, entered_BTH, normed_NH, batch, weights).items():
            total = total + weights[name] * value_N
            found[name] = value_N.detach()
        return total, found

    def _head_terms(
        self, normed_NH: Tensor, head: Head, weights: Mapping[str, float], temperature: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        names = [name for name in HEAD_LOSSES if weights.get(name)]
        if not names:
            return normed_NH.new_zeros(len(normed_NH), dtype=torch.float32), {}
        rows = [head.target_N, *head.soft]

        def losses(logits_CM: Tensor, target_C: Tensor, *soft: Tensor) -> Sequence[Tensor]:
            return [_head_loss(name, logits_CM.float(), head.bias_M, target_C, soft, temperature) for name in names]

        total_N, terms_NL = chunked(
            losses, [weights[name] for name in names], normed_NH, head.weight_MH, rows, CHUNK_TOKENS
        )
        return total_N, {name: terms_NL[:, index] for index, name in enumerate(names)}

    def _hidden_terms(
        self, exit: ExitModel, entered_BTH: Tensor, normed_NH: Tensor, batch: Batch, weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        device = normed_NH.device
        found: dict[str, Tensor] = {}
        if any(weights.get(name) for name in HIDDEN_LOSSES):
            wanted_NH = self.own.last_states(batch)
            if weights.get("hidden_mse"):
                found["hidden_mse"] = hidden_mse(normed_NH, wanted_NH)
            if weights.get("hidden_cosine"):
                found["hidden_cosine"] = hidden_cosine(normed_NH, wanted_NH)
        if weights.get("module_alignment"):
            wanted_NH = self.own.cache.states[exit.target_layer][batch.rows_N].to(device)
            found["module_alignment"] = module_alignment([entered_BTH[batch.counts_BT.to(device)]], [wanted_NH])[0]
        if weights.get("attention_transfer") and exit.copied_from:
            found["attention_transfer"] = self._attention(exit, entered_BTH, batch)
        return found

    def _attention(self, exit: ExitModel, entered_BTH: Tensor, batch: Batch) -> Tensor:
        """`attention_transfer` from the layer that the first block was copied from, at that layer's own input."""
        with torch.no_grad():
            own = states(self.own.cache, batch, exit.target_layer, entered_BTH.device)
            wanted = self._trunk.layer(exit.target_layer)
            maps = wanted.attention_maps(own.to(self._trunk.dtype))
        block = next(exit.layers())
        counts = batch.counts_BT.to(entered_BTH.device)
        return attention_transfer(block.attention_maps(entered_BTH), maps, counts)


def _head_loss(
    name: str, logits_CM: Tensor, bias_M: Tensor, target_C: Tensor, soft: Sequence[Tensor], temperature: float
) -> Tensor:
    if name == "task_cross_entropy":
        return task_cross_entropy(logits_CM + bias_M, target_C)
    if len(soft) == 2:  # the config refuses other soft losses for a teacher that is known by its top tokens
        # The tail is summed at temperature 1, so the bias joins as it is.
        return top_k_kl(logits_CM + bias_M, soft[0], soft[1].float(), temperature)
    # A random id stands for so many ids at the loss's temperature, which divides the bias too.
    student_CM = logits_CM + temperature * bias_M
    by_name = {"soft_target_kl": soft_target_kl, "reverse_kl": reverse_kl, "jensen_shannon": jensen_shannon}
    return by_name[name](student_CM, soft[0].float() + temperature * bias_M, temperature)
