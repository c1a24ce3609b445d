"""One epoch of fenhe's training: the teacher reads the text once, then all exits are trained on its output."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.distill.work import Work
from models.distill.cutting.layout import new_exit
from models.distill.loss.objective import Teacher
from models.distill.run.trainer import Trainer
from models.distill.teacher.cache import cached_teacher, plan_cache


@dataclass(slots=True, kw_only=True, frozen=True)
class OurTimes:
    """`reading_s` covers what is done once: the teacher's pass, its cache on disk, new exits and their fitted maps."""

    reading_s: float
    steps_s: float


def time_ours(work: Work, folder: Path) -> OurTimes:
    """`folder` is empty; the cache goes there."""
    begun_s = time.perf_counter()
    trainer = make_trainer(work, folder)
    settle(work.trunk.device)
    read_s = time.perf_counter()
    trainer.train(resume=False)
    settle(work.trunk.device)
    return OurTimes(reading_s=read_s - begun_s, steps_s=time.perf_counter() - read_s)


def make_trainer(work: Work, folder: Path) -> Trainer:
    """As `Distiller.train` makes it, without checkpoints."""
    layers = work.layout.state_layers
    config = replace(work.config, work=str(folder))
    plan = plan_cache(work.trunk, work.source.sha256(), work.examples, sorted(layers), config.training.teacher_top_k)
    cache = cached_teacher(folder, plan, work.trunk, work.examples, batch_tokens=config.training.batch_tokens)
    exits = [new_exit(work.trunk, work.layout, exit, cache) for exit in work.layout.exits]
    own = Teacher(trunk=work.trunk, cache=cache)
    return Trainer(config, exits, work.examples, own, run="bench", keep=False)


def settle(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
