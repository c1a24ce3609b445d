"""Losses on what comes out of the head: how far a student's next-token distribution is from the teacher's or the text.

Tensor names carry shapes: N token rows, V vocabulary, K cached tokens of the teacher, M vocabulary subset, H hidden,
L loss terms, C rows of one chunk. Every loss is returned per row: which rows count, and how much, is the caller's.
Logits must be finite. Nothing here knows schedules.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, log_softmax

# Cached log-probabilities are rounded, so the mass that they leave over may come out as zero or below.
_LEAST_TAIL = 1e-6


def soft_target_kl(student_logits_NV: Tensor, teacher_logits_NV: Tensor, temperature: float) -> Tensor:
    """Forward KL(teacher || student) between tempered distributions, times temperature squared.

    The square keeps gradients at one size while the temperature moves. Shapes: returns [N]. Units: nats.
    Source: Hinton et al., arXiv 1503.02531, section 2.
    """
    student_NV = _log_probabilities(student_logits_NV, temperature)
    teacher_NV = _log_probabilities(teacher_logits_NV, temperature)
    return _divergence(teacher_NV, student_NV) * temperature**2


def reverse_kl(student_logits_NV: Tensor, teacher_logits_NV: Tensor, temperature: float) -> Tensor:
    """KL(student || teacher), which would rather miss a mode of the teacher's than invent one.

    Shapes: returns [N]. Units: nats. Source: MiniLLM, arXiv 2306.08543, section 2.1.
    """
    return soft_target_kl(teacher_logits_NV, student_logits_NV, temperature)


def jensen_shannon(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, temperature: float, beta: float = 0.5
) -> Tensor:
    """beta KL(teacher || mix) + (1 - beta) KL(student || mix), mix = beta teacher + (1 - beta) student.

    Both ends would be zero everywhere, so 0 stands for the forward and 1 for the reverse KL, as in TRL.
    Shapes: returns [N]. Units: nats. Source: GKD, arXiv 2306.13649, section 2, equation 1.
    """
    assert 0 <= beta <= 1, beta
    if beta == 0:
        return soft_target_kl(student_logits_NV, teacher_logits_NV, temperature)
    if beta == 1:
        return reverse_kl(student_logits_NV, teacher_logits_NV, temperature)
    student_NV = _log_probabilities(student_logits_NV, temperature)
    teacher_NV = _log_probabilities(teacher_logits_NV, temperature)
    shares = torch.tensor((beta, 1 - beta), dtype=student_NV.dtype, device=student_NV.device).log()
    mix_NV = torch.logaddexp(teacher_NV + shares[0], student_NV + shares[1])
    divergence_N = beta * _divergence(teacher_NV, mix_NV) + (1 - beta) * _divergence(student_NV, mix_NV)
    return divergence_N * temperature**2


def top_k_kl(student_logits_NV: Tensor, top_ids_NK: Tensor, top_logprobs_NK: Tensor, temperature: float) -> Tensor:
    """`soft_target_kl` when all that is known of the teacher is its top-k log-probabilities at temperature 1.

    Everything else is one tail bucket, on both sides. Buckets first, temperature second: the K + 1 log-probabilities
    of either side are divided by the temperature and normalised again, the tail as if it were one token (how its
    tokens would share a tempered tail is not in the cache). So equal models have zero loss at any temperature, at 1
    it bounds the full KL from below, and with the whole vocabulary cached it is the full KL.

    Shapes: returns [N]; the ids of a row differ. Units: nats.
    """
    student_buckets = student_logits_NV.gather(1, top_ids_NK)
    teacher_buckets = top_logprobs_NK.to(_wide(top_logprobs_NK))
    if top_ids_NK.shape[1] < student_logits_NV.shape[1]:
        rest_NV = student_logits_NV.scatter(1, top_ids_NK, float("-inf"))
        student_tail = rest_NV.to(_wide(rest_NV)).logsumexp(dim=1, keepdim=True)
        student_buckets = torch.cat((student_buckets.to(student_tail.dtype), student_tail), dim=1)
        teacher_tail = (1 - teacher_buckets.exp().sum(dim=1, keepdim=True)).clamp_min(_LEAST_TAIL).log()
        teacher_buckets = torch.cat((teacher_buckets, teacher_tail), dim=1)
    return soft_target_kl(student_buckets, teacher_buckets, temperature)


def task_cross_entropy(student_logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy with the tokens that the text goes on with. Shapes: returns [N]. Units: nats."""
    return cross_entropy(student_logits_NV.to(_wide(student_logits_NV)), target_N, reduction="none")


def subset_kl(student_normed_NH: Tensor, teacher_normed_NH: Tensor, head_MH: Tensor, temperature: float) -> Tensor:
    """`soft_target_kl` between both distributions restricted to some rows of a shared head (`subset_vocabulary`).

    Shapes: returns [N]. Units: nats.
    """
    student_NM = linear(student_normed_NH, head_MH.to(student_normed_NH.dtype))
    teacher_NM = linear(teacher_normed_NH, head_MH.to(teacher_normed_NH.dtype))
    return soft_target_kl(student_NM, teacher_NM, temperature)


def subset_vocabulary(
    top_ids_NK: Tensor, target_N: Tensor, num_random: int, vocab_size: int, generator: torch.Generator
) -> Tensor:
    """The part of the vocabulary that a batch needs: its likely tokens, its targets and `num_random` others.

    Shapes: returns [M], ascending, each id once; M is smaller when the vocabulary runs out.
    """
    is_chosen_V = torch.zeros(vocab_size, dtype=torch.bool, device=target_N.device)
    is_chosen_V[top_ids_NK.flatten()] = True
    is_chosen_V[target_N] = True
    others = (~is_chosen_V).nonzero().flatten()
    drawn = torch.randperm(len(others), generator=generator, device=generator.device)[:num_random]
    is_chosen_V[others[drawn.to(others.device)]] = True
    return is_chosen_V.nonzero().flatten()


def positions_in(subset_M: Tensor, ids: Tensor) -> Tensor:
    """The positions of token ids in a `subset_vocabulary` that holds them all. Shapes: that of `ids`."""
    return torch.searchsorted(subset_M, ids)


RowLosses = Callable[..., Sequence[Tensor]]
"""From logits [C, V] and the rows' own tensors, chunk by chunk, to one or more losses [C]."""


def chunked(
    losses: RowLosses,
    weights: Sequence[float],
    student_normed_NH: Tensor,
    head_VH: Tensor,
    rows: Sequence[Tensor],
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Head and losses over `chunk_tokens` rows at a time, with the gradient of the whole.

    `losses` gets a chunk's logits and the same rows of each of `rows` (ids, log-probabilities, the teacher's normed
    state), so that tensors of width V exist for one chunk at a time. The forward pass computes each row's gradient
    already, [N, H], and the backward pass only scales it: a row's loss depends on that row alone. This costs two
    matmuls with the head where checkpointing costs three. The head is frozen.

    Shapes: returns the weighted sum [N] (with gradient) and the terms [N, L] (without).
    """
    assert not head_VH.requires_grad, "the head is frozen: it gets no gradient here"
    assert chunk_tokens > 0, chunk_tokens
    assert len(student_normed_NH) > 0, "there are no rows"
    head_VH = head_VH.to(student_normed_NH.dtype)
    if torch.is_grad_enabled() and student_normed_NH.requires_grad:
        return _ChunkedLoss.apply(student_normed_NH, head_VH, losses, weights, rows, chunk_tokens)  # type: ignore[no-untyped-call, no-any-return]
    terms_NL = torch.cat(
        [
            torch.stack(tuple(losses(linear(normed_CH, head_VH), *rows_C)), dim=1)
            for normed_CH, rows_C in _chunks(student_normed_NH, rows, chunk_tokens)
        ]
    ).detach()
    return terms_NL @ terms_NL.new_tensor(weights), terms_NL


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        normed_NH: Tensor,
        head_VH: Tensor,
        losses: RowLosses,
        weights: Sequence[float],
        rows: Sequence[Tensor],
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        pieces = [
            _terms_and_gradient(losses, weights, normed_CH, head_VH, rows_C)
            for normed_CH, rows_C in _chunks(normed_NH, rows, chunk_tokens)
        ]
        terms_NL = torch.cat([terms_CL for terms_CL, _ in pieces])
        ctx.save_for_backward(torch.cat([gradient_CH for _, gradient_CH in pieces]))
        ctx.mark_non_differentiable(terms_NL)
        return terms_NL @ terms_NL.new_tensor(weights), terms_NL

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None, None, None, None, None]:
        (gradient_NH,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient_NH * gradients[0][:, None].to(gradient_NH.dtype), None, None, None, None, None


def _terms_and_gradient(
    losses: RowLosses, weights: Sequence[float], normed_CH: Tensor, head_VH: Tensor, rows_C: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """One chunk's losses [C, L], and how their weighted sum moves with the state of its row [C, H]."""
    with torch.enable_grad():
        normed_CH = normed_CH.detach().requires_grad_()
        terms_CL = torch.stack(tuple(losses(linear(normed_CH, head_VH), *rows_C)), dim=1)
        total = (terms_CL * terms_CL.new_tensor(weights)).sum()
    (gradient_CH,) = torch.autograd.grad(total, normed_CH)
    return terms_CL.detach(), gradient_CH


def _chunks(
    normed_NH: Tensor, rows: Sequence[Tensor], chunk_tokens: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    assert all(len(row) == len(normed_NH) for row in rows), "a tensor of `rows` has another number of rows"
    for first in range(0, len(normed_NH), chunk_tokens):
        part = slice(first, first + chunk_tokens)
        yield normed_NH[part], tuple(row[part] for row in rows)


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return log_softmax(logits.to(_wide(logits)) / temperature, dim=-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _wide(tensor: Tensor) -> torch.dtype:
    """Half precision is too coarse to sum a vocabulary in."""
    return torch.promote_types(tensor.dtype, torch.float32)
