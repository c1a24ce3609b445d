"""What reading and training cost on this machine, measured on a few batches of random tokens."""

import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from models.distill.config import DistillConfig, ExitConfig
from models.distill.cutting.layout import Layout
from models.distill.data.examples import Example
from models.distill.loss.objective import Teacher
from models.distill.network.exit_model import ExitModel
from models.distill.run.teachers import Teachers
from models.distill.run.trainer import Trainer
from models.distill.teacher.cache import cached_teacher, plan_cache

PROBE_STEPS = 3
"""The first one warms up and compares teachers, the others are timed."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Rates:
    """Tokens per second of reading, exit tokens per second of training."""

    reading: float
    training: float
    memory_bytes: int | None


class Rehearsal:
    """A run over random tokens in a folder that is removed: the cache is built and the trainer takes a few steps.

    Every exit takes part in every batch, and the student's own teacher stands in for further ones.
    """

    def __init__(self, config: DistillConfig, teachers: Teachers, layout: Layout) -> None:
        self._config = config
        self._teachers = teachers
        self._layout = layout
        self._examples = self._random_examples()

    def measured(self) -> Rates:
        """Build a cache, train, and measure both."""
        trunk = self._teachers.trunk
        layers = self._layout.state_layers
        with TemporaryDirectory(prefix="fenhe-rehearsal-") as folder:
            warm = self._examples[:1]
            plan = plan_cache(trunk, "warm", warm, sorted(layers), self._config.training.teacher_top_k)
            cached_teacher(Path(folder), plan, trunk, warm)
            plan = plan_cache(trunk, "rehearsal", self._examples, sorted(layers), plan.top_k)
            begun_s = time.monotonic()
            cache = cached_teacher(Path(folder), plan, trunk, self._examples)
            reading_s = time.monotonic() - begun_s
            training = self._training_rate(Teacher(trunk=trunk, cache=cache))
        return Rates(reading=plan.num_tokens / reading_s, training=training, memory_bytes=_peak_bytes(trunk.device))

    def _random_examples(self) -> list[Example]:
        """As many tokens as the steps take; lengths differ, as they do in a run."""
        draw, vocab_size = random.Random(0), self._teachers.source.architecture.vocab_size
        training, longest = self._config.training, self._config.text.max_tokens
        wanted = PROBE_STEPS * training.accumulate * training.batch_tokens
        found: list[Example] = []
        while sum(example.num_tokens for example in found) < wanted:
            size = draw.randint(max(2, longest // 2), longest)
            ids = tuple(draw.randrange(vocab_size) for _ in range(size))
            found.append(Example(task="rehearsal", token_ids=ids, num_prompt_tokens=1, source="rehearsal"))
        return found

    def _training_rate(self, own: Teacher) -> float:
        """Exit tokens per second of every step but the first."""
        torch.manual_seed(self._config.seed)
        marks = [(time.monotonic(), 0)]
        exits = [self._new_exit(own, exit) for exit in self._layout.exits]
        trainer = Trainer(
            self._short_config(),
            exits,
            self._examples,
            own,
            run="rehearsal",
            further=dict.fromkeys(self._teachers.further_sources, own),
            keep=False,
            report=lambda progress, _: marks.append((time.monotonic(), progress.num_tokens)),
        )
        trainer.train(resume=False)
        (begun_s, before), (ended_s, after) = marks[min(1, len(marks) - 2)], marks[-1]
        return (after - before) * len(exits) / (ended_s - begun_s)

    def _new_exit(self, own: Teacher, exit: ExitConfig) -> ExitModel:
        """An exit whose map is not fitted: that takes real text, and does not change the cost."""
        assert exit.copied_from is not None
        return ExitModel(
            own.trunk,
            name=exit.exit_name,
            depth=self._layout.depth(exit),
            copied_from=exit.copied_from,
            has_map=exit.has_map,
            losses=exit.losses,
        )

    def _short_config(self) -> DistillConfig:
        training = replace(self._config.training, epochs=1.0)
        return replace(self._config, training=training, mix=None, quantised=None, exits=self._layout.exits)


def _peak_bytes(device: torch.device) -> int | None:
    """The most memory that this process (on a GPU: its tensors) ever had. None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
