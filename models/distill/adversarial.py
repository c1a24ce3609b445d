"""Adversarial training: the input moved a little in the direction that hurts most, within a bound per token.

Exits start from cached hidden states, so it is the exit's input that moves, where the paper moves word embeddings.
A radius is a share of each token's own length (0.01: one per cent), because hidden states of one sequence differ in
length by orders of magnitude. Shapes: B sequences, T positions, H hidden.

Source: Miyato et al., "Adversarial Training Methods for Semi-Supervised Text Classification" (arXiv 1605.07725),
section 3; several steps: Madry et al. (arXiv 1706.06083).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.errors import ConfigError


def perturb(hidden_BTH: Tensor, loss: Tensor, radius: float, is_real_BT: Tensor) -> Tensor:
    """The input moved along the loss's gradient by `radius` (FGM), detached; padding and ignored tokens stay.

    `hidden_BTH` requires a gradient and `loss` was computed from it; the loss can still be differentiated afterwards.

    Shapes: returns [B, T, H].
    Raises: ConfigError for a radius that is not positive.
    """
    _check_radius(radius)
    (gradient_BTH,) = torch.autograd.grad(loss, hidden_BTH, retain_graph=True)
    return hidden_BTH.detach() + _steepest(gradient_BTH, hidden_BTH.detach(), is_real_BT) * radius


def perturb_stepwise(
    hidden_BTH: Tensor, loss_of: Callable[[Tensor], Tensor], radius: float, is_real_BT: Tensor, num_steps: int
) -> Tensor:
    """As `perturb`, by several smaller steps within the same bound (PGD), each with a pass of its own.

    `loss_of` gives the loss of an input. One step is the same as `perturb`.

    Shapes: returns [B, T, H].
    Raises: ConfigError for a radius or number of steps that is not positive.
    """
    _check_radius(radius)
    if num_steps < 1:
        raise ConfigError(f"adversarial steps must be at least 1, not {num_steps}")
    start_BTH = hidden_BTH.detach()
    # Steps together reach beyond the bound, so that a path that bends still arrives there.
    step = 2 * radius / (num_steps + 1)
    moved_BTH = start_BTH
    for _ in range(num_steps):
        point_BTH = moved_BTH.clone().requires_grad_()
        (gradient_BTH,) = torch.autograd.grad(loss_of(point_BTH), point_BTH)
        offset_BTH = moved_BTH + step * _steepest(gradient_BTH, start_BTH, is_real_BT) - start_BTH
        moved_BTH = start_BTH + _bounded(offset_BTH, radius * _length(start_BTH))
    return moved_BTH


def _steepest(gradient_BTH: Tensor, start_BTH: Tensor, is_real_BT: Tensor) -> Tensor:
    """Each token's gradient brought to the token's own length; zero where there is none. Shapes: [B, T, H]."""
    lengths = _length(gradient_BTH)
    factor = torch.where(lengths > 0, _length(start_BTH) / lengths, 0.0) * is_real_BT[..., None]
    return gradient_BTH * factor


def _bounded(offset_BTH: Tensor, bound: Tensor) -> Tensor:
    lengths = _length(offset_BTH)
    return torch.where(lengths > bound, offset_BTH * (bound / lengths), offset_BTH)


def _length(values_BTH: Tensor) -> Tensor:
    """Shapes: returns [B, T, 1]."""
    length: Tensor = torch.linalg.vector_norm(values_BTH, dim=-1, keepdim=True)
    return length


def _check_radius(radius: float) -> None:
    if not 0 < radius < math.inf:
        raise ConfigError(
            f"the adversarial radius must be a finite number above 0, not {radius}; leave it out to train without"
        )
