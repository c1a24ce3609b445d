"""The training loop: all exits at once over the teacher's cache, in steps that a kill can interrupt anywhere.

Everything random comes from the seed and the step's number, so a resumed run ends in the same weights.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.distill.config import DistillConfig
from models.distill.data.examples import Example
from models.distill.loss.adversarial import perturb
from models.distill.loss.batch import Batch, make_batch, shared_prefix, states
from models.distill.loss.mining import entropy_weights
from models.distill.loss.objective import SOFT_LOSSES, Head, Objective, Teacher
from models.distill.network.exit_model import ExitModel
from models.distill.run.checkpoint import checkpoint_file, load_checkpoint, save_checkpoint
from models.distill.run.identity import changeable
from models.distill.run.log import append_line, forget_after
from models.distill.run.order import plan_order
from models.distill.run.progress import Progress, Reporter
from models.distill.steering.adaptive_weights import AdaptiveWeights
from models.distill.steering.schedules import alignment_weights_at, learning_rate_at, stage_at, temperature_at
from models.distill.teacher.switch import TeacherSwitch
from models.errors import ConfigError, StepFailed

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.98)
SMOOTHING = 0.98
OWN = "own"
SETTLED_STEPS = 200
"""Divergence is judged from here on: the first steps are restless."""


class Trainer:
    """One run over prepared examples. `further` are more teachers, by name. `keep`: log and write checkpoints."""

    def __init__(
        self,
        config: DistillConfig,
        exits: Sequence[ExitModel],
        examples: Sequence[Example],
        own: Teacher,
        *,
        run: str,
        further: Mapping[str, Teacher] | None = None,
        keep: bool = True,
        report: Reporter = lambda progress, num_steps: None,
    ) -> None:
        self._config = config
        self._own = own
        self._trunk = own.trunk
        self._exits = list(exits)
        self._examples = examples
        self._run = run
        self._keep = keep
        self._further = dict(further or {})
        self._report = report
        self._work = config.work_folder
        self._prefix = shared_prefix(examples)
        self._objective = Objective(own, config.training.head_tokens, top_k=config.training.soft_targets == "top_k")
        self._order = plan_order(examples, config)
        self._optimiser = torch.optim.AdamW(
            [{"params": exit.trained()} for exit in exits],
            betas=BETAS,
            weight_decay=config.training.weight_decay,
        )
        self._adaptive = AdaptiveWeights(config, [exit.name for exit in exits])
        names = [OWN, *self._further]
        self._switch = TeacherSwitch(names, config.switch) if self._further and config.ensemble == "switch" else None
        self._saved: Path | None = None
        self._rate = 0.0
        self.progress = Progress()

    @property
    def num_steps(self) -> int:
        num_left = len(self._order) - self.progress.first_pass
        return self.progress.first_step + math.ceil(num_left / self._config.training.accumulate)

    def _pass_of(self, step: int) -> int:
        """The pass that a step begins with."""
        return self.progress.first_pass + (step - self.progress.first_step) * self._config.training.accumulate

    def _share(self, step: int) -> float:
        """The share of the run that is done before a step."""
        return min(1.0, self._pass_of(step) / len(self._order))

    def train(self, *, resume: bool) -> Progress:
        """Run to the end.

        Raises: StepFailed for a loss that is not finite or diverges and for too little memory, naming the checkpoint;
        ConfigError when there are checkpoints of another run, or of this one and `resume` is not set.
        """
        if not self._order:
            raise ConfigError("there is nothing to train: give more text, or make training.epochs larger")
        if self._keep:
            self._work.path.mkdir(parents=True, exist_ok=True)
        if resume:
            self._load()
        if self._keep:
            forget_after(self._work.log, self.progress.step, self.progress.num_tokens)
        saved_s = time.monotonic()
        while self.progress.step < self.num_steps:
            self._guarded_step()
            is_last = self.progress.step == self.num_steps
            is_due = is_last or time.monotonic() - saved_s >= self._config.training.checkpoint_s
            if self._keep and is_due:
                self._save()
                saved_s = time.monotonic()
        return self.progress

    def _guarded_step(self) -> None:
        try:
            self._step()
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise self._failure("memory ran out; make training.batch_tokens smaller") from error
        except RuntimeError as error:
            if "alloc" not in str(error):
                raise
            raise self._failure("memory ran out; make training.batch_tokens smaller") from error

    def _step(self) -> None:
        step = self.progress.step
        share = self._share(step + 1)
        self._set_rates(share)
        self._begin_quantising(share)
        sums: dict[str, dict[str, float]] = {exit.name: {} for exit in self._exits}
        for index in range(self._pass_of(step), min(self._pass_of(step + 1), len(self._order))):
            self._pass(index, share, sums)
        norms = self._norms()
        trained = [parameter for exit in self._exits for parameter in exit.trained()]
        torch.nn.utils.clip_grad_norm_(trained, self._config.training.clip_norm)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._observe(sums, norms, share)
        self.progress.step += 1
        self._log(sums, share)

    def _set_rates(self, share: float) -> None:
        """An exit's weight is a factor of its learning rate: AdamW does not see how large a loss is."""
        self._rate = learning_rate_at(self._config.learning_rate, share)
        for group, exit in zip(self._optimiser.param_groups, self._exits, strict=True):
            group["lr"] = self._rate * self._adaptive.module_weight(exit.name)
            group["weight_decay"] = self._config.training.weight_decay

    def _pass(self, index: int, share: float, sums: dict[str, dict[str, float]]) -> None:
        """Forward and backward of all exits on one batch."""
        batch = make_batch(
            self._order[index], self._examples, self._own.cache, self._prefix, self._config.training.prompt_weight
        )
        exits = [] if batch is None else [exit for exit in self._exits if self._learns(exit, batch)]
        if batch is None or not exits:
            return
        if self._switch is not None and self.progress.step % self._config.training.switch_steps == 0:
            self._compare_teachers(batch, exits, index)
        head = self._objective.head(batch, self._generator(index), self._speaking())
        weight_N = self._token_weights(batch)
        for exit in exits:
            self._exit_pass(exit, batch, head, weight_N, share, sums)
        self.progress.num_tokens += batch.num_tokens

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._config.seed * 1_000_003 + index)

    def _speaking(self) -> list[Teacher]:
        """The teachers whose soft targets count now."""
        if self._switch is None:
            return [self._own, *self._further.values()]
        return [{OWN: self._own, **self._further}[self._switch.current]]

    @torch.no_grad()
    def _compare_teachers(self, batch: Batch, exits: Sequence[ExitModel], index: int) -> None:
        """Tell the switch how far the student is from every teacher, by the exits' mean."""
        assert self._switch is not None
        distances = {}
        for name, teacher in {OWN: self._own, **self._further}.items():
            head = self._objective.head(batch, self._generator(index), [teacher])
            found = [
                self._objective.terms(exit, self._states(exit, batch), batch, head, {"soft_target_kl": 1.0}, 1.0)[0]
                for exit in exits
            ]
            distances[name] = float(torch.stack(found).mean())
        self._switch.observe(distances)

    def _states(self, exit: ExitModel, batch: Batch) -> Tensor:
        return states(self._own.cache, batch, exit.depth, self._trunk.device).to(self._trunk.dtype)

    def _exit_pass(
        self,
        exit: ExitModel,
        batch: Batch,
        head: Head,
        weight_N: Tensor,
        share: float,
        sums: dict[str, dict[str, float]],
    ) -> None:
        weights, temperature = self._weights(exit, share)
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
        torch.autograd.backward(loss / self._config.training.accumulate)
        found = sums[exit.name]
        found["loss"] = found.get("loss", 0.0) + float(loss.detach())
        found["passes"] = found.get("passes", 0.0) + 1
        for name, value_N in terms.items():
            found[name] = found.get(name, 0.0) + float(value_N.mean())

    def _learns(self, exit: ExitModel, batch: Batch) -> bool:
        return not exit.tasks or batch.task in exit.tasks

    def _weights(self, exit: ExitModel, share: float) -> tuple[dict[str, float], float]:
        """The weights of the losses and the temperature now."""
        stage, _ = stage_at(self._config.stages, share)
        weights, temperature = self._adaptive.weights(stage)
        temperature = temperature or stage.temperature or temperature_at(self._config.temperature, share)
        weights = dict(exit.losses) or weights
        if self._config.alignment is not None:
            errors = [other.map_error for other in self._exits]
            grown = alignment_weights_at(self._config.alignment, share, errors)
            weights = {**weights, "module_alignment": grown[self._exits.index(exit)]}
        return weights, temperature

    def _token_weights(self, batch: Batch) -> Tensor:
        weight_N = batch.weight_N
        if self._config.mining is not None:
            mining = self._config.mining
            entropy_N = self._own.cache.entropy[batch.rows_N]
            weight_N = weight_N * entropy_weights(entropy_N, mining.strength, mining.drop_share)
        return weight_N.to(self._trunk.device)

    def _begin_quantising(self, share: float) -> None:
        quantised = self._config.quantised
        if quantised is not None and share > 1 - quantised.share:
            for exit in self._exits:
                if exit.precision != quantised.precision:
                    exit.quantise(quantised.precision)

    def _norms(self) -> dict[str, float]:
        """The length of every exit's gradient."""
        norms = {}
        for exit in self._exits:
            gradients = [parameter.grad for parameter in exit.trained() if parameter.grad is not None]
            if gradients:
                norms[exit.name] = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        return norms

    def _observe(self, sums: Mapping[str, dict[str, float]], norms: Mapping[str, float], share: float) -> None:
        """Smooth the losses, feed what steers, and stop a run that goes nowhere."""
        stage, _ = stage_at(self._config.stages, share)
        self._begin_phase(f"{stage.name} {self._exits[0].precision}")
        temperature = self._weights(self._exits[0], share)[1]
        for exit in self._exits:
            found = sums[exit.name]
            if "loss" not in found:
                continue
            loss = found["loss"] / found["passes"]
            if not math.isfinite(loss) or not math.isfinite(norms.get(exit.name, 0.0)):
                raise self._failure(f"the loss of {exit.name} is not finite; make learning_rate.peak smaller")
            self._judge(exit.name, (loss, _untempered(found, exit.losses or stage.weights, temperature)))
        self._adaptive.observe(stage, sums, norms, self.progress.num_tokens, temperature)

    def _judge(self, name: str, values: tuple[float, float]) -> None:
        """A loss diverges when it grows both with and without the square of the temperature.

        A rising temperature makes the one grow, a falling one the other.
        """
        progress = self.progress
        before = progress.smoothed.get(name, values)
        smoothed = progress.smoothed[name] = (_smooth(before[0], values[0]), _smooth(before[1], values[1]))
        if progress.step - progress.phase_step < SETTLED_STEPS:
            return
        best = progress.best.get(name, smoothed)
        best = progress.best[name] = (min(best[0], smoothed[0]), min(best[1], smoothed[1]))
        factor = self._config.training.divergence_factor
        if smoothed[0] > factor * best[0] and smoothed[1] > factor * best[1]:
            raise self._failure(f"the loss of {name} diverges; make learning_rate.peak smaller")

    def _begin_phase(self, phase: str) -> None:
        """Another stage or precision has another loss: what was smoothed and best before says nothing about it."""
        if phase != self.progress.phase:
            self.progress.phase, self.progress.phase_step = phase, self.progress.step
            self.progress.smoothed.clear()
            self.progress.best.clear()

    def _failure(self, what: str) -> StepFailed:
        kept = "there is no checkpoint yet"
        if self._saved is not None:
            kept = f"the last good checkpoint is {self._saved}, which --resume goes on from"
        elif not self._keep:
            kept = "this run keeps no checkpoints"
        return StepFailed(f"training stopped at step {self.progress.step}: {what}; {kept}")

    def _log(self, sums: Mapping[str, dict[str, float]], share: float) -> None:
        self._report(self.progress, self.num_steps)
        is_due = self.progress.step % self._config.training.log_steps == 0 or self.progress.step == self.num_steps
        if not (self._keep and is_due):
            return
        terms = {
            name: {term: value / found["passes"] for term, value in found.items() if term != "passes"}
            for name, found in sums.items()
            if found
        }
        line = {
            "step": self.progress.step,
            "num_tokens": self.progress.num_tokens,
            "loss": dict(self.progress.losses),
            "terms": terms,
            "learning_rate": self._rate,
            "temperature": self._weights(self._exits[0], share)[1],
            "teacher": OWN if self._switch is None else self._switch.current,
        }
        append_line(self._work.log, line)

    def _save(self) -> None:
        state = {
            "run": self._run,
            "settings": changeable(self._config),
            "num_passes": len(self._order),
            "progress": asdict(self.progress),
            "exits": {exit.name: exit.state_dict() for exit in self._exits},
            "optimiser": self._optimiser.state_dict(),
            "steering": self._adaptive.state_dict(),
            "switch": None if self._switch is None else self._switch.state_dict(),
        }
        self._saved = save_checkpoint(self._work.checkpoints, self.progress.step, state)

    def _load(self) -> None:
        state = load_checkpoint(self._work.checkpoints, self._run)
        if state is None:
            return
        for exit in self._exits:
            exit.load_state_dict(state["exits"][exit.name])
        self._optimiser.load_state_dict(state["optimiser"])
        self._adaptive.load_state_dict(state["steering"])
        if self._switch is not None:
            self._switch.load_state_dict(state["switch"])
        self.progress = Progress(**state["progress"])
        self._saved = checkpoint_file(self._work.checkpoints, self.progress.step)
        self._take_changes(state)
        self._begin_quantising(self._share(self.progress.step))
        logger.info("training resumed step=%d of=%d", self.progress.step, self.num_steps)

    def _take_changes(self, state: Mapping[str, Any]) -> None:
        """Say what changed since the checkpoint; other batches go on at the same share of the run."""
        then, now = state["settings"], changeable(self._config)
        for name in sorted(name for name in now if now[name] != then.get(name)):
            logger.warning(
                "setting changed since the checkpoint name=%s from=%s to=%s", name, then.get(name), now[name]
            )
        progress, num_passes = self.progress, state["num_passes"]
        accumulate = then["training.accumulate"]
        if (num_passes, accumulate) == (len(self._order), self._config.training.accumulate):
            return
        done = min(num_passes, progress.first_pass + (progress.step - progress.first_step) * accumulate)
        progress.first_step, progress.first_pass = progress.step, round(done / num_passes * len(self._order))


def _untempered(found: Mapping[str, float], weights: Mapping[str, float], temperature: float) -> float:
    """An exit's loss by its configured weights, without the square of the temperature."""
    terms = {name: found[name] / found["passes"] for name in weights if name in found}
    return sum(
        weights[name] * value / (temperature**2 if name in SOFT_LOSSES else 1.0) for name, value in terms.items()
    )


def _smooth(before: float, now: float) -> float:
    return SMOOTHING * before + (1 - SMOOTHING) * now
