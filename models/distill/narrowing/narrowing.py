"""From a model and text to a widths file: an order of the neurons, widths, what they are refitted to, and training."""

import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.building.width_encoding import encode_difference, encode_int8
from models.building.width_file import NarrowPath, WidthFile, WidthPlan, read_width_file, write_width_file
from models.distill.data.examples import Example
from models.distill.loss.narrow_loss import sample_head
from models.distill.narrowing.allocation import allocate, measure_layers
from models.distill.narrowing.calibration import Calibration, calibrate
from models.distill.narrowing.elimination import Elimination, eliminate, refit
from models.distill.narrowing.training import Leg, LegProgress, frequent_tokens
from models.distill.network.decoder import Trunk
from models.distill.network.narrow_model import LayerStart, NarrowModel
from models.distill.run.heldout import HeldOutFigure, first_of_each_task, score_widths
from models.distill.run.identity import content_of, key_of, plain
from models.distill.width_settings import WidthSettings
from models.distill.work_folder import WorkFolder
from models.errors import ConfigError
from models.sources.source import ModelSource
from models.student.cut import TASKS
from models.student.manifest import WIDTH_BLOCK, Width

logger = logging.getLogger(__name__)

DOWN = "model.layers.{}.mlp.down_proj.weight"
PROMPT_WEIGHT = 0.3
"""How much a prompt's token counts in calibration, where an answer's and plain text's count 1."""

CHANGEABLE = ("learning_rate", "clip_norm", "max_seconds", "max_tokens", "checkpoint_s", "log_steps")
HELD_OUT_ROWS = 30
"""Of every task, to compare a leg with the one before; `fenhe eval` measures the student."""

Report = Callable[[str, float, float], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Start:
    """Where training begins: the widths, widest first, and each layer's matrices."""

    widths: tuple[Width, ...]
    layers: tuple[LayerStart, ...]
    ledger: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True, kw_only=True)
class Narrowing:
    """One leg: what it starts from is computed, or read from an earlier leg's file. `examples` are shuffled already;
    the first of every task of `held_out` are measured at the end.
    """

    source: ModelSource
    trunk: Trunk
    examples: Sequence[Example]
    held_out: Sequence[Example]
    settings: WidthSettings
    work: WorkFolder
    report: Report = field(default=lambda what, done, total: None)

    def run(self, *, resume: bool = False) -> LegProgress:
        """Train, and write the widths file to the work folder.

        Raises: ConfigError (nothing to train on, a start of another model), StepFailed when training has to stop.
        """
        calibration = self._calibration()
        start = self._start(calibration)
        model = NarrowModel(self.trunk, start.layers, trains_output=self.settings.trains_output)
        num_tokens = min(sum(example.num_tokens for example in self.examples), self.settings.leg.max_tokens)
        leg = Leg(
            model,
            [width.name for width in start.widths],
            self.examples,
            self.settings.leg,
            calibration.moments,
            run=self._run_key(start),
            checkpoints=self.work.checkpoints,
            log=self.work.log,
            report=lambda progress: self.report("training", progress.num_tokens, num_tokens),
        )
        progress = leg.train(resume=resume)
        widths = self._trained_widths(start)
        figures = score_widths(
            model, [width.name for width in widths], first_of_each_task(self.held_out, HELD_OUT_ROWS)
        )
        plan = WidthPlan(
            source_sha256=self.source.sha256(),
            widths=widths,
            paths=tuple(NarrowPath(name=width.name, width=width.name) for width in widths),
            tasks=dict.fromkeys(TASKS, widths[-1].name),  # what each keeps decides which of them a task takes
            depth_rules=(),
            training={"legs": [*start.ledger, self._entry(progress, figures)]},
        )
        write_width_file(self.work.widths, plan, compact_tensors(model, widths, self.settings))
        return progress

    def _calibration(self) -> Calibration:
        """The teacher's neurons on the first examples; kept in the work folder."""
        chosen = first_tokens(self.examples, self.settings.calibration_tokens)
        key = hashlib.sha256((self.source.sha256() + content_of(chosen)).encode()).hexdigest()
        file = self.work.calibration(key)
        if file.exists():
            stored = torch.load(file, weights_only=True)
            return Calibration(moments=tuple(stored["moments"]), num_tokens=stored["num_tokens"])
        total = sum(example.num_tokens for example in chosen)
        found = calibrate(
            self.trunk,
            chosen,
            prompt_weight=PROMPT_WEIGHT,
            report=lambda done: self.report("reading neurons", done, total),
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"moments": list(found.moments), "num_tokens": found.num_tokens}, file)
        return found

    def _start(self, calibration: Calibration) -> Start:
        if self.settings.start is not None:
            return start_from(read_width_file(Path(self.settings.start)), self.source)
        return self._first_start(calibration)

    def _first_start(self, calibration: Calibration) -> Start:
        architecture, settings = self.source.architecture, self.settings
        size, num_layers = architecture.intermediate_size, architecture.num_layers
        least = -(-int(settings.least_share * size) // WIDTH_BLOCK) * WIDTH_BLOCK
        downs = [torch.from_numpy(self.source.read(DOWN.format(layer))) for layer in range(num_layers)]
        found: list[Elimination] = []
        for layer, (down_HI, moment_II) in enumerate(zip(downs, calibration.moments, strict=True)):
            found.append(eliminate(down_HI, moment_II, least=least))
            self.report("ordering neurons", layer + 1, num_layers)
        counts = self._counts(found, downs, calibration, least)
        widths = tuple(Width(name=name, neurons=kept) for name, kept in counts.items())
        layers = []
        for layer, (one, down_HI, moment_II) in enumerate(zip(found, downs, calibration.moments, strict=True)):
            matrices = {width.name: refit(down_HI, moment_II, one.order_I[: width.neurons[layer]]) for width in widths}
            layers.append(LayerStart(order_I=one.order_I, down_HK=matrices))
        return Start(widths=widths, layers=tuple(layers))

    def _counts(
        self, found: Sequence[Elimination], downs: Sequence[Tensor], calibration: Calibration, least: int
    ) -> dict[str, tuple[int, ...]]:
        """Neurons by width and layer, widest first."""
        settings, architecture = self.settings, self.source.architecture
        size, num_layers = architecture.intermediate_size, architecture.num_layers
        shares = sorted(settings.shares.items(), key=lambda item: -item[1])
        middle = round(shares[-1][1] * size / WIDTH_BLOCK) * WIDTH_BLOCK
        refitted = [
            refit(down_HI, moment_II, one.order_I[:middle])
            for one, down_HI, moment_II in zip(found, downs, calibration.moments, strict=True)
        ]
        chosen = first_tokens(self.examples, settings.measured_tokens)
        head = sample_head(
            self.trunk,
            frequent_tokens(chosen, settings.leg.frequent_tokens),
            torch.tensor([[id for example in chosen for id in example.token_ids]]),
            settings.leg.head_tokens,
            torch.Generator().manual_seed(settings.leg.seed),
        )
        measured = measure_layers(
            self.trunk,
            chosen,
            refitted,
            [one.order_I for one in found],
            head,
            report=lambda layer: self.report("measuring layers", layer + 1, num_layers),
        )
        errors = [one.errors for one in found]
        return {
            name: allocate(errors, measured, middle, settings.total_neurons(share, num_layers, size), least)
            for name, share in shares
        }

    def _trained_widths(self, start: Start) -> tuple[Width, ...]:
        return tuple(
            msgspec.structs.replace(width, has_own_output=width.has_own_output or self.settings.trains_output)
            for width in start.widths
        )

    def _entry(self, progress: LegProgress, figures: Sequence[HeldOutFigure]) -> dict[str, Any]:
        """A leg in the ledger: what it read, and how far it came. Units: nats for `held_out_kl`, by width and task."""
        leg = self.settings.leg
        return {
            "seed": leg.seed,
            "steps": progress.step,
            "tokens": progress.num_tokens,
            "seconds": round(progress.seconds),
            "loss": round(progress.loss, 4),
            "learning_rate": leg.learning_rate.peak,
            "draws": dict(leg.draws),
            "text_sha256": content_of(self.examples),
            "tokens_by_task": tokens_by_task(self.examples),
            "held_out_kl": {f"{one.exit} {one.task}": round(one.kl, 4) for one in figures},
        }

    def _run_key(self, start: Start) -> str:
        """The learning rate, the end and how often is saved and logged may change when a leg is resumed."""
        leg = plain(self.settings.leg)
        for name in CHANGEABLE:
            leg.pop(name)
        parts = {"teacher": self.source.sha256(), "data": content_of(self.examples), "widths": start.widths}
        return key_of(parts | {"trains_output": self.settings.trains_output, "start": self.settings.start, "leg": leg})


def start_from(file: WidthFile, source: ModelSource) -> Start:
    """The weights of an earlier leg; its mixed widths have none, and are left out. Raises: ConfigError for a file of
    another model."""
    if file.plan.source_sha256 != source.sha256():
        raise ConfigError(
            f"{file.file}: its widths were made for a model with SHA-256 {file.plan.source_sha256[:12]}..., and the "
            f"teacher has {source.sha256()[:12]}...; leave widths.start out, or give that teacher"
        )
    layers, widths = [], file.plan.own_widths
    for layer in range(source.architecture.num_layers):
        matrices = {width.name: torch.from_numpy(file.read(source, width, layer, "down")) for width in widths}
        outputs = {
            width.name: torch.from_numpy(file.read(source, width, layer, "output"))
            for width in widths
            if width.has_own_output
        }
        order_I = torch.from_numpy(file.order(layer))
        layers.append(LayerStart(order_I=order_I, down_HK=matrices, output_HA=next(iter(outputs.values()), None)))
    legs = file.plan.training.get("legs", [])
    return Start(widths=widths, layers=tuple(layers), ledger=tuple(legs))


def compact_tensors(
    model: NarrowModel, widths: Sequence[Width], settings: WidthSettings
) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a widths file: the widest width's in int8, what the others and attention differ by in low rank."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for index, layer in enumerate(model.narrow_layers()):
        tensors[f"order.{index}"] = layer.order_I.numpy().astype(np.int16)
        widest = _array(layer.down(widths[0].name))
        tensors |= encode_int8(f"{widths[0].name}.layers.{index}.down", widest)
        for width in widths[1:]:
            name = f"{width.name}.layers.{index}.down"
            tensors |= encode_difference(name, _array(layer.down(width.name)), widest, settings.rank)
        output, base = _array(layer.output()), _array(layer.own_output())
        for width in widths:
            if width.has_own_output:
                name = f"{width.name}.layers.{index}.output"
                tensors |= encode_difference(name, output, base, settings.output_rank)
                base = output if width is widths[0] else base  # the widths have one W_o, which is stored once
    return tensors


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    return values.detach().float().cpu().numpy()


def first_tokens(examples: Sequence[Example], budget: int) -> list[Example]:
    """The first examples that together have at most `budget` tokens, and at least one."""
    chosen: list[Example] = []
    total = 0
    for example in examples:
        if chosen and total + example.num_tokens > budget:
            break
        chosen.append(example)
        total += example.num_tokens
    return chosen


def tokens_by_task(examples: Sequence[Example]) -> dict[str, int]:
    found: dict[str, int] = {}
    for example in examples:
        found[example.task] = found.get(example.task, 0) + example.num_tokens
    return dict(sorted(found.items()))


def with_plain(examples: Sequence[Example], plain: Sequence[Example], share: float, seed: int) -> list[Example]:
    """All examples and as many plain ones as make up at most `share` of the tokens, shuffled together."""
    shuffler = random.Random(f"{seed}/plain")
    shuffled = list(plain)
    shuffler.shuffle(shuffled)
    budget = int(sum(example.num_tokens for example in examples) * share / (1 - share))
    chosen = [*examples, *(first_tokens(shuffled, budget) if shuffled and budget else [])]
    shuffler.shuffle(chosen)
    return chosen
