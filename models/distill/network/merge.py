"""Branch-merge: exits of one shape, each trained for one task from the same start, made into one exit.

Works on named tensors and knows nothing of layers or files. Computes in fp64, returns the base's type.

Source: TinyR1-32B-Preview (arXiv 2503.04872), whose merge of two models keeps only changes that stand out (Arcee
Fusion); merging several branches at once, and the choice between them where they disagree, are ours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.errors import ConfigError

Tensors = Mapping[str, Tensor]

IQR_FACTOR = 1.5
"""How far above the middle half of all importances a change has to lie: Tukey's rule for outliers."""


def average(branches: Sequence[Tensors], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of the branches, `weights` (None: all equal) brought to a sum of one.

    Shapes: the branches' own, which agree.
    Raises: ConfigError for branches of different shapes, or weights that do not fit them.
    """
    _check_branches(branches)
    shares = np.ones(len(branches)) if weights is None else np.array(weights, np.float64)
    if len(shares) != len(branches) or not (shares.min() >= 0 and 0 < shares.sum() < np.inf):
        raise ConfigError(f"give each of the {len(branches)} branches a weight of at least 0, not all 0: {weights}")
    normalised = torch.from_numpy(shares / shares.sum())
    return {name: _mean([branch[name] for branch in branches], normalised) for name in branches[0]}


def _mean(values: Sequence[Tensor], shares: Tensor) -> Tensor:
    """On the device that the branches are on."""
    stacked = torch.stack([value.double() for value in values])
    mean: Tensor = torch.tensordot(shares.to(stacked.device), stacked, 1)
    return mean.to(values[0].dtype)


def fuse(base: Tensors, branches: Sequence[Tensors]) -> dict[str, Tensor]:
    """The base with those changes of the branches that matter most; where several do, the most important one.

    Shapes: the base's.
    Raises: ConfigError for branches of other shapes than the base.
    """
    _check_branches(branches, base)
    return {name: _fused(start, [branch[name] for branch in branches]) for name, start in base.items()}


def importance(base: Tensor, branch: Tensor) -> Tensor:
    """|change| times KL(softmax(branch's row) || softmax(base's row)); a vector is one row. Shapes: as the base."""
    # In fp32 the divergence of two nearly equal rows is mostly rounding.
    base, branch = base.double(), branch.double()
    new, old = branch.log_softmax(dim=-1), base.log_softmax(dim=-1)
    divergence = (new.exp() * (new - old)).sum(dim=-1, keepdim=True).clamp(min=0.0)
    return (branch - base).abs() * divergence


def _fused(base: Tensor, branches: Sequence[Tensor]) -> Tensor:
    importances = torch.stack([_outstanding(importance(base, branch)) for branch in branches])
    changes = torch.stack([branch.double() - base.double() for branch in branches])
    largest, winner = importances.max(dim=0, keepdim=True)
    chosen = torch.where(largest > 0, changes.gather(0, winner), 0.0)[0]
    return (base.double() + chosen).to(base.dtype)


def _outstanding(importances: Tensor) -> Tensor:
    """Importances that stand out among those of their tensor, zero for the rest."""
    # numpy: torch.quantile refuses tensors of more than 16 million values.
    low, middle, high = np.quantile(importances.cpu().numpy(), (0.25, 0.5, 0.75))
    return torch.where(importances >= middle + IQR_FACTOR * (high - low), importances, 0.0)


def _check_branches(branches: Sequence[Tensors], base: Tensors | None = None) -> None:
    """Raises: ConfigError that names every tensor in which they differ."""
    if not branches:
        raise ConfigError("nothing to merge; give at least one trained branch")
    expected = _shapes(base or branches[0])
    different = sorted({name for branch in branches for name, _ in expected ^ _shapes(branch)})
    if different:
        raise ConfigError(f"only branches of one shape can be merged; these differ in {', '.join(different)}")


def _shapes(tensors: Tensors) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
