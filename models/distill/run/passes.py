"""One pass of a training step: from a batch to the gradients of the exits that learn its task."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.distill.config import DistillConfig
from models.distill.data.examples import Example
from models.distill.loss.adversarial import perturb
from models.distill.loss.batch import Batch, make_batch, shared_prefix, states
from models.distill.loss.mining import entropy_weights
from models.distill.loss.objective import Head, Objective
from models.distill.network.exit_model import ExitModel
from models.distill.run.loss_weights import LossWeights
from models.distill.run.teacher_choice import TeacherChoice

Sums = dict[str, dict[str, float]]
"""By exit: the sums of its loss and terms over a step, and under `passes` how many passes they are from."""


class Passes:
    """Adds gradients to the exits' parameters and figures to the step's sums; changes no weight."""

    def __init__(
        self,
        config: DistillConfig,
        exits: Sequence[ExitModel],
        examples: Sequence[Example],
        teachers: TeacherChoice,
        weights: LossWeights,
    ) -> None:
        self._config = config
        self._exits = list(exits)
        self._examples = examples
        self._teachers = teachers
        self._weights = weights
        self._cache = teachers.own.cache
        self._trunk = teachers.own.trunk
        self._prefix = shared_prefix(examples)
        self._objective = Objective(
            teachers.own, config.training.head_tokens, top_k=config.training.soft_targets == "top_k"
        )

    def run(self, indices: Sequence[int], number: int, *, step: int, share: float, sums: Sums) -> int:
        """Train all exits on these examples; returns how many tokens that were.

        `number` is the pass's number in the run, which together with the seed decides everything random in it.
        """
        batch = make_batch(indices, self._examples, self._cache, self._prefix, self._config.training.prompt_weight)
        exits = [] if batch is None else [exit for exit in self._exits if _learns(exit, batch)]
        if batch is None or not exits:
            return 0
        if self._teachers.is_due(step):
            self._compare_teachers(batch, exits, number)
        head = self._objective.head(batch, self._generator(number), self._teachers.current())
        weight_N = self._token_weights(batch)
        for exit in exits:
            self._exit_pass(exit, batch, head, weight_N, share, sums[exit.name])
        return batch.num_tokens

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._config.seed * 1_000_003 + number)

    @torch.no_grad()
    def _compare_teachers(self, batch: Batch, exits: Sequence[ExitModel], number: int) -> None:
        """Measure how far the student is from every teacher, as the mean over its exits."""
        distances = {}
        for name, teacher in self._teachers.every.items():
            head = self._objective.head(batch, self._generator(number), [teacher])
            found = [
                self._objective.terms(exit, self._states(exit, batch), batch, head, {"soft_target_kl": 1.0}, 1.0)[0]
                for exit in exits
            ]
            distances[name] = float(torch.stack(found).mean())
        self._teachers.observe(distances)

    def _states(self, exit: ExitModel, batch: Batch) -> Tensor:
        """Shapes: returns [B, T, H]."""
        return states(self._cache, batch, exit.depth, self._trunk.device).to(self._trunk.dtype)

    def _token_weights(self, batch: Batch) -> Tensor:
        """Shapes: returns [N]."""
        weight_N = batch.weight_N
        if self._config.mining is not None:
            mining = self._config.mining
            entropy_N = self._cache.entropy[batch.rows_N]
            weight_N = weight_N * entropy_weights(entropy_N, mining.strength, mining.drop_share)
        return weight_N.to(self._trunk.device)

    def _exit_pass(
        self, exit: ExitModel, batch: Batch, head: Head, weight_N: Tensor, share: float, found: dict[str, float]
    ) -> None:
        """Add an exit's gradient on the batch to its parameters, and its figures to `found`."""
        loss, terms = self._loss(exit, batch, head, weight_N, share)
        torch.autograd.backward(loss / self._config.training.accumulate)
        found["loss"] = found.get("loss", 0.0) + float(loss.detach())
        found["passes"] = found.get("passes", 0.0) + 1
        for name, value_N in terms.items():
            found[name] = found.get(name, 0.0) + float(value_N.mean())

    def _loss(
        self, exit: ExitModel, batch: Batch, head: Head, weight_N: Tensor, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Shapes: returns the loss, a scalar with its gradient, and every term [N] without."""
        weights, temperature = self._weights.at(share, exit)
        hidden = self._states(exit, batch)
        adversarial = self._config.adversarial
        if adversarial is not None:
            hidden = hidden.float().requires_grad_()
        with torch.autocast(self._trunk.device.type, torch.bfloat16, enabled=self._trunk.dtype is torch.bfloat16):
            total_N, terms = self._objective.terms(exit, hidden, batch, head, weights, temperature)
            loss = (total_N * weight_N).mean()
            if adversarial is not None:
                is_real = batch.is_real_BT.to(hidden.device)
                moved = perturb(hidden, loss, adversarial.radius, is_real)
                moved_N, _ = self._objective.terms(exit, moved, batch, head, weights, temperature)
                loss = loss + adversarial.weight * (moved_N * weight_N).mean()
        return loss, terms


def _learns(exit: ExitModel, batch: Batch) -> bool:
    return not exit.tasks or batch.task in exit.tasks


def gradient_norms(exits: Sequence[ExitModel]) -> dict[str, float]:
    """The length of every exit's gradient, by name; an exit that no pass trained has none."""
    norms = {}
    for exit in exits:
        gradients = [parameter.grad for parameter in exit.trained() if parameter.grad is not None]
        if gradients:
            norms[exit.name] = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    return norms
