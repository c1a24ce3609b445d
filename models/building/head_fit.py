"""Fits the cheap head of a model to normed states that its paths produced: `fenhe head`.

The start is in closed form: of all previews of a rank, the one with the least squared error of the logits over the
states. Then the preview is refined by KL from the exact distribution to the one that sampling sees, in which frequent
tokens and candidates are exact: what is left to learn is the tail. There most logits are underestimated on average,
since what a preview leaves out is as often above as below and the exponential weighs it unevenly: each token learns a
constant of its own.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta

from models.bounds import Positive, out_of_bounds
from models.building.head_file import RANK_MULTIPLE
from models.errors import ConfigError
from models.graphs.rotate import rotation

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

WARM_UP_STEPS = 20
FLOOR_SHARE = 0.03
LOG_STEPS = 20
ROWS_AT_ONCE = 512
SMALLEST_VARIANCE = 1e-8
BIAS_RATE = 10.0
"""Of the tokens' constants, over that of the matrices: a step of one moves one logit alone."""


@dataclass(slots=True, kw_only=True, frozen=True)
class HeadFitConfig:
    """How large the head is, and how long it is refined; `steps` 0 leaves the closed form as it is."""

    rank: Annotated[int, Meta(ge=4)] = 48
    num_frequent: Positive = 1024
    num_candidates: Positive = 4096
    reach: Annotated[float, Meta(gt=0.0)] = 11.0
    steps: Annotated[int, Meta(ge=0)] = 300
    batch_rows: Positive = 384
    learning_rate: Annotated[float, Meta(gt=0.0)] = 2e-3
    preview_weight: Annotated[float, Meta(ge=0.0)] = 0.3
    seed: int = 0

    def check(self, hidden_size: int, vocab_size: int) -> None:
        """Raises: ConfigError with everything that does not fit a model of these sizes."""
        problems: list[object] = list(out_of_bounds(self))
        if self.rank % RANK_MULTIPLE:
            problems.append(f"rank {self.rank} must be a multiple of {RANK_MULTIPLE}")
        if self.rank > hidden_size:
            problems.append(f"rank {self.rank} is above the hidden size, {hidden_size}")
        if self.num_frequent + self.num_candidates > vocab_size:
            problems.append(
                f"{self.num_frequent} frequent tokens and {self.num_candidates} candidates are more than the "
                f"vocabulary, {vocab_size}"
            )
        if problems:
            raise ConfigError(*map(str, problems))


@dataclass(slots=True, kw_only=True, frozen=True)
class FittedHead:
    """Shapes: project, expand [rank, hidden], bias [vocab]; `frequent` has token ids, the most likely first;
    `mean_candidates` is how many other tokens a state needs exactly, on average over a sample of the states."""

    project: Array
    expand: Array
    bias: Array
    frequent: tuple[int, ...]
    mean_candidates: float


def fit_head(
    states: Array, weight: Array, config: HeadFitConfig, report: Callable[[int, float], None] | None = None
) -> FittedHead:
    """Fit a head to normed states. `report` gets the step and its KL in nats.

    Shapes: states [positions, hidden], weight [vocab, hidden].
    Raises: ConfigError.
    """
    config.check(weight.shape[1], weight.shape[0])
    fit = _Fit(torch.from_numpy(states), torch.from_numpy(weight), config)
    project, expand, bias = fit.refine(report or _log_step)
    # Another basis of the same previews, in which no dimension is an outlier: they are rounded to 8 bits per row.
    turn = torch.from_numpy(rotation(config.rank))
    return FittedHead(
        project=(project @ turn).T.contiguous().numpy(),
        expand=(expand @ turn).T.contiguous().numpy(),
        bias=bias.numpy(),
        frequent=tuple(fit.frequent.tolist()),
        mean_candidates=fit.mean_candidates(project, expand, bias),
    )


def _log_step(step: int, kl: float) -> None:
    logger.info("fitting head step=%d kl=%.4f", step, kl)


class _Fit:
    """Letters in shapes: N states, D hidden, V vocabulary, R rank, B rows of a step."""

    def __init__(self, states_ND: torch.Tensor, weight_VD: torch.Tensor, config: HeadFitConfig) -> None:
        self._config = config
        self._weight_VD = weight_VD
        self._states_ND = states_ND
        self._random = torch.Generator().manual_seed(config.seed)
        self._mean_D = states_ND.mean(0)
        self._root_DD, self._inverse_root_DD = _roots(states_ND - self._mean_D)
        self.frequent = self._likeliest(config.num_frequent)

    def refine(self, report: Callable[[int, float], None]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Shapes: returns project, expand [D, R] and bias [V]."""
        # In the basis of whitened states all directions learn at one rate.
        whitened_DR = self._closed_form()
        project_DR, expand_DR = whitened_DR.clone().requires_grad_(), whitened_DR.clone().requires_grad_()
        start_D = self._mean_D - self._root_DD @ whitened_DR @ (whitened_DR.T @ (self._inverse_root_DD @ self._mean_D))
        bias_V = (self._weight_VD @ start_D).requires_grad_()
        rate = self._config.learning_rate
        groups = [{"params": [project_DR, expand_DR], "lr": rate}, {"params": [bias_V], "lr": rate * BIAS_RATE}]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        for step in range(self._config.steps):
            loss, kl = self._loss(self._batch(), project_DR, expand_DR, bias_V)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step % LOG_STEPS == 0 or step == self._config.steps - 1:
                report(step, kl)
        with torch.no_grad():
            return self._inverse_root_DD @ project_DR, self._root_DD @ expand_DR, bias_V.detach()

    def mean_candidates(self, project_DR: torch.Tensor, expand_DR: torch.Tensor, bias_V: torch.Tensor) -> float:
        """Shapes: as `refine` returns them."""
        preview_VR = self._weight_VD @ expand_DR
        found = 0
        sample_BD = self._sample()
        for rows_BD in torch.split(sample_BD, ROWS_AT_ONCE):
            found += int(self._is_exact(rows_BD @ project_DR @ preview_VR.T + bias_V).sum())
        return found / len(sample_BD) - len(self.frequent)

    def _closed_form(self) -> torch.Tensor:
        """The directions of whitened states that carry most of the logits' variance. Shapes: returns [D, R].

        A constant added to all logits of a position changes no probability: the mean over the vocabulary is left out.
        """
        centred_VD = self._weight_VD - self._weight_VD.mean(0)
        weighted_DD = self._root_DD @ (centred_VD.T @ centred_VD) @ self._root_DD
        directions_DD: torch.Tensor = torch.linalg.eigh(weighted_DD.double()).eigenvectors
        return directions_DD.flip(1)[:, : self._config.rank].float()

    def _loss(
        self,
        states_BD: torch.Tensor,
        project_DR: torch.Tensor,
        expand_DR: torch.Tensor,
        bias_V: torch.Tensor,
    ) -> tuple[torch.Tensor, float]:
        """KL of what sampling sees, and a share of the KL of the preview alone, which decides who is a candidate."""
        exact_BV = states_BD @ self._weight_VD.T
        preview_VR = self._weight_VD @ (self._root_DD @ expand_DR)
        preview_BV = states_BD @ (self._inverse_root_DD @ project_DR) @ preview_VR.T + bias_V
        log_exact_BV = torch.log_softmax(exact_BV, 1)
        seen_BV = torch.where(self._is_exact(preview_BV.detach()), exact_BV, preview_BV)
        kl, preview_kl = _kl(log_exact_BV, seen_BV), _kl(log_exact_BV, preview_BV)
        return kl + self._config.preview_weight * preview_kl, kl.item()

    def _is_exact(self, preview_BV: torch.Tensor) -> torch.Tensor:
        """Shapes: returns [B, V] of booleans."""
        rivals_BV = preview_BV.index_fill(1, self.frequent, -math.inf)
        best = rivals_BV.topk(self._config.num_candidates, 1)
        is_near = best.values >= preview_BV.max(1, keepdim=True).values - self._config.reach
        found_BV = torch.zeros_like(preview_BV, dtype=torch.bool).scatter_(1, best.indices, is_near)
        return found_BV.index_fill(1, self.frequent, value=True)

    def _batch(self) -> torch.Tensor:
        rows = torch.randint(len(self._states_ND), (self._config.batch_rows,), generator=self._random)
        return self._states_ND[rows]

    def _share_of_rate(self, step: int) -> float:
        """A warm-up, then half a cosine down to a floor."""
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self._config.steps))))
        return warm * (FLOOR_SHARE + (1 - FLOOR_SHARE) * cosine)

    def _likeliest(self, num_tokens: int) -> torch.Tensor:
        """The tokens with the highest mean probability over a sample of the states. Shapes: returns [num_tokens]."""
        mass_V = torch.zeros(len(self._weight_VD))
        for rows_BD in torch.split(self._sample(), ROWS_AT_ONCE):
            mass_V += torch.softmax(rows_BD @ self._weight_VD.T, 1).sum(0)
        return mass_V.argsort(descending=True, stable=True)[:num_tokens]

    def _sample(self) -> torch.Tensor:
        """Shapes: returns [B, D]."""
        return self._states_ND[torch.randperm(len(self._states_ND), generator=self._random)[: 16 * ROWS_AT_ONCE]]


def _kl(log_exact_BV: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
    """Mean KL from the exact distribution. Units: nats."""
    differences_BV = log_exact_BV - torch.log_softmax(logits_BV, 1)
    return (log_exact_BV.exp() * differences_BV).sum(1).mean()


def _roots(centred_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric root of the states' covariance, and its inverse. Shapes: returns [D, D], [D, D]."""
    covariance_DD = (centred_ND.T @ centred_ND / len(centred_ND)).double()
    values, vectors = torch.linalg.eigh(covariance_DD)
    values = values.clamp_min(SMALLEST_VARIANCE)
    root_DD, inverse_DD = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    return root_DD.float(), inverse_DD.float()
