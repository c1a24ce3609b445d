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

from models.distill.config import DistillConfig
from models.distill.data.examples import Example
from models.distill.loss.objective import Teacher
from models.distill.network.exit_model import ExitModel
from models.distill.run.checkpoint import checkpoint_file, load_checkpoint, save_checkpoint
from models.distill.run.divergence import begin_phase, diverges, untempered
from models.distill.run.identity import changeable
from models.distill.run.log import append_line, forget_after
from models.distill.run.loss_weights import LossWeights
from models.distill.run.order import plan_order
from models.distill.run.passes import Passes, Sums, gradient_norms
from models.distill.run.progress import Progress, Reporter
from models.distill.run.teacher_choice import TeacherChoice
from models.distill.steering.adaptive_weights import AdaptiveWeights
from models.distill.steering.schedules import learning_rate_at, stage_at
from models.errors import ConfigError, StepFailed

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.98)


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
        self._exits = list(exits)
        self._run = run
        self._keep = keep
        self._report = report
        self._work = config.work_folder
        self._order = plan_order(examples, config)
        self._optimiser = torch.optim.AdamW(
            [{"params": exit.trained()} for exit in exits],
            betas=BETAS,
            weight_decay=config.training.weight_decay,
        )
        self._adaptive = AdaptiveWeights(config, [exit.name for exit in exits])
        self._weights = LossWeights(config, exits, self._adaptive)
        self._teachers = TeacherChoice(config, own, further or {})
        self._passes = Passes(config, exits, examples, self._teachers, self._weights)
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
        sums: Sums = {exit.name: {} for exit in self._exits}
        for number in range(self._pass_of(step), min(self._pass_of(step + 1), len(self._order))):
            num_tokens = self._passes.run(self._order[number], number, step=step, share=share, sums=sums)
            self.progress.num_tokens += num_tokens
        norms = gradient_norms(self._exits)
        trained = [parameter for exit in self._exits for parameter in exit.trained()]
        torch.nn.utils.clip_grad_norm_(trained, self._config.training.clip_norm)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._observe(sums, norms, share)
        self.progress.step += 1
        self._log(sums, share)

    def _set_rates(self, share: float) -> None:
        """An exit's weight scales its learning rate: to AdamW the size of a loss makes no difference."""
        self._rate = learning_rate_at(self._config.learning_rate, share)
        for group, exit in zip(self._optimiser.param_groups, self._exits, strict=True):
            group["lr"] = self._rate * self._adaptive.module_weight(exit.name)
            group["weight_decay"] = self._config.training.weight_decay

    def _begin_quantising(self, share: float) -> None:
        quantised = self._config.quantised
        if quantised is not None and share > 1 - quantised.share:
            for exit in self._exits:
                if exit.precision != quantised.precision:
                    exit.quantise(quantised.precision)

    def _observe(self, sums: Sums, norms: Mapping[str, float], share: float) -> None:
        """Stop a run that diverges, and adapt the weights to the step's losses and gradients."""
        stage, _ = stage_at(self._config.stages, share)
        begin_phase(self.progress, f"{stage.name} {self._exits[0].precision}")
        temperature = self._temperature(share)
        for exit in self._exits:
            found = sums[exit.name]
            if "loss" not in found:
                continue
            loss = found["loss"] / found["passes"]
            if not math.isfinite(loss) or not math.isfinite(norms.get(exit.name, 0.0)):
                raise self._failure(f"the loss of {exit.name} is not finite; make learning_rate.peak smaller")
            values = (loss, untempered(found, exit.losses or stage.weights, temperature))
            if diverges(self.progress, exit.name, values, self._config.training.divergence_factor):
                raise self._failure(f"the loss of {exit.name} diverges; make learning_rate.peak smaller")
        self._adaptive.observe(stage, sums, norms, self.progress.num_tokens, temperature)

    def _temperature(self, share: float) -> float:
        return self._weights.at(share, self._exits[0])[1]

    def _failure(self, what: str) -> StepFailed:
        kept = "there is no checkpoint yet"
        if self._saved is not None:
            kept = f"the last good checkpoint is {self._saved}, from which --resume continues"
        elif not self._keep:
            kept = "this run keeps no checkpoints"
        return StepFailed(f"training stopped at step {self.progress.step}: {what}; {kept}")

    def _log(self, sums: Sums, share: float) -> None:
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
            "temperature": self._temperature(share),
            "teacher": self._teachers.name,
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
            "switch": self._teachers.state_dict(),
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
        self._teachers.load_state_dict(state["switch"])
        self.progress = Progress(**state["progress"])
        self._saved = checkpoint_file(self._work.checkpoints, self.progress.step)
        self._take_changes(state)
        self._begin_quantising(self._share(self.progress.step))
        logger.info("training resumed step=%d of=%d", self.progress.step, self.num_steps)

    def _take_changes(self, state: Mapping[str, Any]) -> None:
        """Log what changed since the checkpoint. Where the batches changed, continue at the same share of the run."""
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
