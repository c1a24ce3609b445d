"""An order of a layer's feed-forward neurons in which any first part serves best, and the matrix that then serves.

Neurons are eliminated one group after another; the matrix behind them is refitted each time, so that what is left
says as much as it can of what the eliminated ones said. Source: optimal brain surgeon (Hassibi and Stork, 1993), on
the columns of `down_proj`, with the second moments of its input as the Hessian.

Tensor names carry shapes: H hidden, I all neurons, K kept ones, S eliminated ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the second moments' diagonal, as a share of its median: keeps the refitted matrix near the original one.
(Not of its mean: in some layers one neuron, which fires at the first token, is a thousand times all others.)
"""


@dataclass(slots=True, kw_only=True, frozen=True)
class Elimination:
    """`order_I`: the neurons, those to keep longest first. `errors` by number of kept neurons: the mean squared
    change of what the layer adds to the hidden state, summed over its dimensions, after the refit.
    """

    order_I: Tensor
    errors: dict[int, float]


def eliminate(down_HI: Tensor, moment_II: Tensor, *, least: int, group: int = 16) -> Elimination:
    """Eliminate neurons down to `least`, `group` at a time; those that stay to the end keep their original order."""
    damped_II = damped(moment_II).double()
    inverse = torch.linalg.inv(damped_II)
    weights, left, gone = down_HI.double(), torch.arange(down_HI.shape[1]), list[Tensor]()
    error, errors = 0.0, {down_HI.shape[1]: 0.0}
    while len(left) > least:
        size = min(group, len(left) - least)
        costs = weights.square().sum(dim=0) / inverse.diagonal()
        leaving = costs.argsort(stable=True)[:size]
        is_kept = torch.ones(len(left), dtype=torch.bool)
        is_kept[leaving] = False
        solved = torch.linalg.solve(
            inverse[leaving][:, leaving], torch.cat((inverse[leaving], weights[:, leaving].T), 1)
        )
        coupling, outputs = solved[:, : len(left)], solved[:, len(left) :]
        error += float((weights[:, leaving] * outputs.T).sum())
        weights = (weights - weights[:, leaving] @ coupling)[:, is_kept]
        inverse = (inverse - inverse[:, leaving] @ coupling)[is_kept][:, is_kept]
        gone.append(left[leaving].flip(0))
        left = left[is_kept]
        errors[len(left)] = error
    return Elimination(order_I=torch.cat((left, *reversed(gone))), errors=errors)


def refit(down_HI: Tensor, moment_II: Tensor, kept_K: Tensor) -> Tensor:
    """The matrix from the kept neurons that comes closest to what all of them give. Shapes: returns [H, K], fp32."""
    damped_II = damped(moment_II).double()
    wanted_HK = down_HI.double() @ damped_II[:, kept_K]
    matrix_HK: Tensor = torch.linalg.solve(damped_II[kept_K][:, kept_K], wanted_HK, left=False).float()
    return matrix_HK


def damped(moment_II: Tensor) -> Tensor:
    """The second moments with `DAMPING` on their diagonal. Shapes: [I, I] in and out."""
    return moment_II + DAMPING * moment_II.diagonal().median() * torch.eye(len(moment_II), device=moment_II.device)
