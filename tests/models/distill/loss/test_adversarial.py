"""Perturbed inputs, on losses whose gradient is known without differentiating."""

import pytest
import torch
from torch import Tensor

from models.distill.loss.adversarial import perturb
from models.errors import ConfigError

# Two tokens of length 5 and 10, and a third that is padding.
HIDDEN = torch.tensor([[[3.0, 4.0], [0.0, 10.0], [1.0, 1.0]]])
IS_REAL = torch.tensor([[True, True, False]])
# The gradient of `linear_loss`: direction (0.6, 0.8) at the first token, (-1, 0) at the second.
SLOPES = torch.tensor([[[6.0, 8.0], [-0.5, 0.0], [7.0, 7.0]]])


def linear_loss(hidden: Tensor) -> Tensor:
    return (hidden * SLOPES).sum()


def test_perturbation_follows_the_gradient_by_a_share_of_the_tokens_length() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    moved = perturb(hidden, linear_loss(hidden), 0.1, IS_REAL)
    # 0.1 x 5 along (0.6, 0.8), 0.1 x 10 along (-1, 0), and padding stays although the loss reads it.
    torch.testing.assert_close(moved, torch.tensor([[[3.3, 4.4], [-1.0, 10.0], [1.0, 1.0]]]))
    assert not moved.requires_grad


def test_perturbation_leaves_tokens_without_gradient_and_the_loss_intact() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    weight = torch.tensor(2.0, requires_grad=True)
    loss = (hidden[:, 0] * weight).sum()
    moved = perturb(hidden, loss, 0.5, IS_REAL)
    assert torch.equal(moved[:, 1:], HIDDEN[:, 1:])
    assert hidden.grad is None
    assert weight.grad is None
    torch.autograd.backward(loss)
    assert weight.grad == 7.0


def test_the_radius_must_be_positive() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    with pytest.raises(ConfigError, match="radius must be a finite number above 0"):
        perturb(hidden, linear_loss(hidden), 0.0, IS_REAL)
