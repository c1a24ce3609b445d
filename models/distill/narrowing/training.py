"""Trains the widths of a model together: each step runs one of them, and all share what it learns.

Soft targets alone: KL from full depth and width, over a sample of the vocabulary. A leg is a run of its own that ends
by time or tokens; the next leg begins from the weights it wrote, on another machine if need be.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.distill.data.examples import Example, batches
from models.distill.loss.batch import shared_prefix
from models.distill.loss.narrow_loss import divergence, sample_head, text_of
from models.distill.narrowing.optimiser import TurnedAdam, principal_directions
from models.distill.network.narrow_model import NarrowModel
from models.distill.run.checkpoint import load_checkpoint, save_checkpoint
from models.distill.run.log import append_line, forget_after
from models.distill.steering.schedules import learning_rate_at
from models.distill.width_settings import LegSettings
from models.errors import ConfigError, StepFailed

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.95)


@dataclass(slots=True, kw_only=True)
class LegProgress:
    """How far a leg is. `seconds` counts every process that worked on it."""

    step: int = 0
    num_batches: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0


class Leg:
    """One leg over prepared examples. Everything random comes from the seed and the step's number."""

    def __init__(
        self,
        model: NarrowModel,
        widths: Sequence[str],
        examples: Sequence[Example],
        settings: LegSettings,
        moments: Sequence[Tensor],
        *,
        run: str,
        checkpoints: Path | None = None,
        log: Path | None = None,
        report: Callable[[LegProgress], None] = lambda progress: None,
    ) -> None:
        """`run` identifies model, text and settings: a checkpoint of another run is refused. `moments` are the second
        moments of each layer's neurons (`Calibration`).

        Raises: ConfigError for settings that contradict themselves, or nothing to train on.
        """
        if problems := settings.problems(widths):
            raise ConfigError("; ".join(problems))
        if not examples:
            raise ConfigError("there is no text to train the widths on")
        self._model, self._widths, self._settings = model, list(widths), settings
        self._examples, self._run = examples, run
        self._checkpoints, self._log, self._report = checkpoints, log, report
        self._prefix = shared_prefix([one for one in examples if one.num_prompt_tokens] or examples)
        self._order = batches([one.num_tokens for one in examples], settings.batch_tokens, seed=settings.seed, epoch=0)
        self._frequent_F = frequent_tokens(examples, settings.frequent_tokens)
        self._optimiser = TurnedAdam(*_turned(model, moments), BETAS)
        self.progress = LegProgress()

    def train(self, *, resume: bool = False) -> LegProgress:
        """Run to the end of the leg.

        Raises: StepFailed for a loss that is not finite; ConfigError for a checkpoint of another run.
        """
        if resume:
            self._load()
        if self._log is not None:
            forget_after(self._log, self.progress.step, self.progress.num_tokens)
        began_s, before_s = time.monotonic(), self.progress.seconds
        saved_s = began_s
        share = self._share()
        while share < 1.0:
            self._step(share)
            self.progress.seconds = before_s + time.monotonic() - began_s
            share = self._share()
            self._tell(is_last=share >= 1.0)
            if time.monotonic() - saved_s >= self._settings.checkpoint_s:
                self._save()
                saved_s = time.monotonic()
        self._save()
        return self.progress

    def _share(self) -> float:
        """The share of the leg that is done."""
        done, settings = self.progress, self._settings
        return max(
            done.seconds / settings.max_seconds,
            done.num_tokens / settings.max_tokens,
            done.num_batches / len(self._order),
        )

    def _step(self, share: float) -> None:
        settings, progress = self._settings, self.progress
        drawn = random.Random(f"{settings.seed}/{progress.step}")
        width = self._drawn_width(drawn)
        chosen = [self._examples[index] for index in self._order[progress.num_batches]]
        text = text_of(chosen, settings.prompt_weight, self._prefix)
        if len(text.weight_N):
            generator = torch.Generator().manual_seed(drawn.randrange(2**31))
            loss = self._gradients(text.ids_BT, text.counts_BT, text.weight_N, width, generator)
            if not torch.isfinite(loss):
                raise StepFailed(
                    f"the loss of width {width!r} is not finite at step {progress.step}: train again from the last "
                    "checkpoint with a lower learning_rate.peak"
                )
            torch.nn.utils.clip_grad_norm_(self._model.trained(), settings.clip_norm)
            self._optimiser.step(self._learning_rate(share))
            progress.loss = float(loss)
        progress.step += 1
        progress.num_batches += 1
        progress.num_tokens += text.num_tokens

    def _drawn_width(self, drawn: random.Random) -> str:
        if not self._settings.draws:
            return drawn.choice(self._widths)
        return drawn.choices(self._widths, [self._settings.draws.get(name, 0.0) for name in self._widths])[0]

    def _learning_rate(self, share: float) -> float:
        """Of a step that begins after this share of the leg; the first ones are not left without one."""
        schedule = self._settings.learning_rate
        return learning_rate_at(schedule, max(share, schedule.warmup_share / 4))

    def _gradients(
        self, ids_BT: Tensor, counts_BT: Tensor, weight_N: Tensor, width: str, generator: torch.Generator
    ) -> Tensor:
        """Fill the gradients of one step; returns the mean loss of a position that counts, in nats."""
        trunk = self._model.trunk
        head = sample_head(trunk, self._frequent_F, ids_BT, self._settings.head_tokens, generator)
        ids_BT, counts_BT, weight_N = (value.to(trunk.device) for value in (ids_BT, counts_BT, weight_N))
        with torch.no_grad():
            full_BTH = trunk.norm(trunk.run(trunk.embed(ids_BT), range(trunk.architecture.num_layers)))
        loss = (divergence(full_BTH[counts_BT], self._model(ids_BT, width)[counts_BT], head) * weight_N).sum()
        self._optimiser.forget_gradients()
        # By the size of a step and not by its weight: a step of prompts alone should move less than one of answers.
        (loss / self._settings.batch_tokens).backward()  # type: ignore[no-untyped-call]
        return loss.detach() / weight_N.sum()

    def _tell(self, *, is_last: bool) -> None:
        self._report(self.progress)
        progress = self.progress
        if self._log is not None and (is_last or progress.step % self._settings.log_steps == 0):
            line = {"step": progress.step, "num_tokens": progress.num_tokens, "loss": progress.loss}
            append_line(self._log, line | {"seconds": round(progress.seconds, 1)})

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        state: dict[str, Any] = {"run": self._run, "model": self._model.state_dict()}
        state["optimiser"] = self._optimiser.state_dict()
        state["progress"] = {name: getattr(self.progress, name) for name in LegProgress.__slots__}
        save_checkpoint(self._checkpoints, self.progress.step, state)

    def _load(self) -> None:
        state = None if self._checkpoints is None else load_checkpoint(self._checkpoints, self._run)
        if state is None:
            return
        self._model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.progress = LegProgress(**state["progress"])
        logger.info("leg resumed step=%d tokens=%d", self.progress.step, self.progress.num_tokens)


def _turned(model: NarrowModel, moments: Sequence[Tensor]) -> tuple[list[nn.Parameter], list[Tensor | None]]:
    """What is trained, and the basis that its steps are taken in: none for attention, whose input was not measured."""
    parameters: list[nn.Parameter] = []
    bases: list[Tensor | None] = []
    for layer, moment_II in zip(model.narrow_layers(), moments, strict=True):
        parameters.append(layer.down_change)
        bases.append(principal_directions(moment_II, layer.order_I, layer.down_change.shape[1]))
        if layer.output_change.requires_grad:
            parameters.append(layer.output_change)
            bases.append(None)
    return parameters, bases


def frequent_tokens(examples: Sequence[Example], count: int) -> Tensor:
    """The most frequent token ids of the examples, the more frequent first. Shapes: returns [at most count]."""
    if not count:
        return torch.zeros(0, dtype=torch.long)
    ids, counts = np.unique(np.concatenate([example.token_ids for example in examples]), return_counts=True)
    return torch.from_numpy(ids[np.argsort(-counts, kind="stable")[:count]])
