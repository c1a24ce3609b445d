"""Adam for matrices whose inputs are correlated: it takes its steps along the principal directions of the input.

The neurons of a layer say much the same as one another, so that a step on each column alone is slow in some directions
and too fast in others. Turned into the eigenbasis of the input's second moments the columns are uncorrelated, and
Adam's step per entry fits. It is the one-sided, fixed-basis case of SOAP (arXiv 2409.11321).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-8


class TurnedAdam:
    """Adam on some matrices [out, in], each with an orthogonal basis [in, in] of its input; None: as it is."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], bases: Sequence[Tensor | None], betas: tuple[float, float]
    ) -> None:
        assert len(parameters) == len(bases), "one basis for each parameter"
        self._parameters, self._bases, self._betas = list(parameters), list(bases), betas
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._num_steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One step along the gradients; a parameter without one stays."""
        self._num_steps += 1
        fast, slow = self._betas
        for parameter, basis, mean, square in zip(
            self._parameters, self._bases, self._means, self._squares, strict=True
        ):
            if parameter.grad is None:
                continue
            gradient = parameter.grad if basis is None else parameter.grad @ basis
            mean.mul_(fast).add_(gradient, alpha=1 - fast)
            square.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
            spread = (square / (1 - slow**self._num_steps)).sqrt_().add_(EPSILON)
            move = mean / (1 - fast**self._num_steps) / spread
            parameter.add_(move if basis is None else move @ basis.T, alpha=-learning_rate)

    def forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"num_steps": self._num_steps, "means": self._means, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._num_steps = state["num_steps"]
        for own, stored in ((self._means, state["means"]), (self._squares, state["squares"])):
            for value, found in zip(own, stored, strict=True):
                value.copy_(found)


def principal_directions(moment_II: Tensor, order_I: Tensor, count: int) -> Tensor:
    """The orthogonal basis of the first `count` neurons of an order. Shapes: returns [count, count], fp32."""
    kept = order_I[:count]
    directions: Tensor = torch.linalg.eigh(moment_II[kept][:, kept].double())[1].float()
    return directions
