"""Adversarial training: the input moved a little in the direction that raises the loss most, bounded per token.

Exits start from cached hidden states, so it is the exit's input that moves, where the paper moves word embeddings.
A radius is a share of each token's own length (0.01: one per cent), because hidden states of one sequence differ in
length by orders of magnitude. Shapes: B sequences, T positions, H hidden.

Source: Miyato et al., "Adversarial Training Methods for Semi-Supervised Text Classification" (arXiv 1605.07725),
section 3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import ConfigError


@dataclass(slots=True, kw_only=True, frozen=True)
class AdversarialSettings:
    """A second pass over every batch, its input moved by `radius` of each token's length; `weight` is its loss's."""

    radius: float = 0.01
    weight: float = 0.5

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        return [
            f"adversarial.{name} must be above 0, not {getattr(self, name)}"
            for name in ("radius", "weight")
            if not getattr(self, name) > 0
        ]


def perturb(hidden_BTH: Tensor, loss: Tensor, radius: float, is_real_BT: Tensor) -> Tensor:
    """The input moved along the loss's gradient by `radius` (FGM), detached; padding and ignored tokens stay.

    `hidden_BTH` requires a gradient and `loss` was computed from it; the loss can still be differentiated afterwards.

    Shapes: returns [B, T, H].
    Raises: ConfigError for a radius that is not positive.
    """
    _check_radius(radius)
    (gradient_BTH,) = torch.autograd.grad(loss, hidden_BTH, retain_graph=True)
    return hidden_BTH.detach() + _steepest(gradient_BTH, hidden_BTH.detach(), is_real_BT) * radius


def _steepest(gradient_BTH: Tensor, start_BTH: Tensor, is_real_BT: Tensor) -> Tensor:
    """Each token's gradient scaled to the token's own length; zero where the gradient is. Shapes: [B, T, H]."""
    lengths = _length(gradient_BTH)
    factor = torch.where(lengths > 0, _length(start_BTH) / lengths, 0.0) * is_real_BT[..., None]
    return gradient_BTH * factor


def _length(values_BTH: Tensor) -> Tensor:
    """Shapes: returns [B, T, 1]."""
    length: Tensor = torch.linalg.vector_norm(values_BTH, dim=-1, keepdim=True)
    return length


def _check_radius(radius: float) -> None:
    if not 0 < radius < math.inf:
        raise ConfigError(
            f"the adversarial radius must be a finite number above 0, not {radius}; leave it out to train without"
        )
