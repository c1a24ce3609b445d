"""`--dry-run`: what a run would do, how long it would take here and how much memory, disk and answering it needs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.cut import default_modules, parse_modules
from models.distill.batch import make_batch, states
from models.distill.cache import CachedTeacher
from models.distill.config import AUTO, DistillConfig
from models.distill.data_report import DataReport, report_of
from models.distill.decoder import Trunk
from models.distill.distiller import Distiller, planned_exits
from models.distill.examples import Example, encode_rows
from models.distill.exit_model import ExitModel
from models.distill.objective import Objective, Teacher
from models.distill.preparation import clean

PROBE_EXAMPLES = 4
PROBE_TOKENS = 256
GIB = 2**30


@dataclass(slots=True, kw_only=True, frozen=True)
class RunPlan:
    """Units: tokens, seconds, bytes. Rates are measured on a few hundred random tokens, so times are rough."""

    data: DataReport
    cut: str
    exits: tuple[str, ...]
    num_unanswered: int
    num_tokens: int
    num_trained_tokens: int
    reading_s: float
    training_s: float
    cache_bytes: int
    memory_bytes: int

    def text(self) -> str:
        """What `fenhe distill --dry-run` prints."""
        lines = [
            self.data.text(),
            "",
            f"cut        {self.cut}",
            *(f"exit       {exit}" for exit in self.exits),
            f"answers    {self.num_unanswered} prompts have none and are answered by the teacher first",
            f"reading    {self.num_tokens:,} tokens with the teacher, about {_span(self.reading_s)}, "
            f"{self.cache_bytes / GIB:.1f} GiB of disk",
            f"training   {self.num_trained_tokens:,} tokens through all exits, about {_span(self.training_s)}",
            f"memory     about {self.memory_bytes / GIB:.1f} GiB",
        ]
        return "\n".join(lines)


def plan_run(distiller: Distiller) -> RunPlan:
    """Reads the data and times a few passes; writes nothing and asks the teacher for no answers.

    Answers that are missing are counted as long as they may be. Raises: ConfigError.
    """
    config, source = distiller.config, distiller.source
    cleaned = clean(config.data_settings, config.seed)
    examples, too_long = encode_rows(cleaned.training, source.tokenizer(), config.text.max_tokens)
    num_unanswered = sum(row.answer is None for row in (*cleaned.training, *cleaned.held_out))
    num_tokens = _num_tokens(examples, config)
    modules = (
        default_modules(source.architecture.num_layers)
        if config.modules == AUTO
        else parse_modules(config.modules, source.architecture.num_layers)
    )
    exits = planned_exits(config, modules)
    ends = {module.name: module.first_layer + module.num_layers for module in modules}
    reading, step = _measured(distiller.trunk, [ends[exit.after] for exit in exits], config)
    num_trained = int(num_tokens * config.training.epochs)
    depths = {ends[exit.after] for exit in exits} | {exit.copied_from[0] for exit in exits if exit.copied_from}
    layers = len(depths | {source.architecture.num_layers})
    width = source.architecture.hidden_size
    return RunPlan(
        data=report_of(
            read=cleaned.read, dropped=[*cleaned.dropped, too_long], held_out=cleaned.held_out, examples=examples
        ),
        cut=", ".join(f"{m.name}:{m.num_layers}" for m in modules)
        + (" (or what the analysis of the layers chooses)" if config.modules == AUTO else ""),
        exits=tuple(
            f"{e.exit_name} behind {ends[e.after]} layers, copy of layers {e.copied_from}, "
            f"on {', '.join(e.tasks) or 'all tasks'}"
            for e in exits
        ),
        num_unanswered=num_unanswered,
        num_tokens=num_tokens,
        num_trained_tokens=num_trained,
        reading_s=num_tokens / reading,
        training_s=num_trained / step,
        cache_bytes=num_tokens * (2 * width * layers + 6 * config.training.teacher_top_k + 4),
        memory_bytes=_memory_bytes(distiller.trunk, exits, config),
    )


def _num_tokens(examples: list[Example], config: DistillConfig) -> int:
    """With answers still to come counted at their full length; bounded as `text` says."""
    by_task: dict[str, int] = {}
    for example in examples:
        is_unanswered = example.num_tokens == example.num_prompt_tokens
        size = example.num_tokens + is_unanswered * config.labels.max_tokens
        by_task[example.task] = by_task.get(example.task, 0) + min(size, config.text.max_tokens)
    bounds = config.text.task_tokens
    total = sum(min(size, bounds.get(task, size)) for task, size in by_task.items())
    return min(total, config.text.max_train_tokens or total)


def _memory_bytes(trunk: Trunk, exits: "tuple[object, ...]", config: DistillConfig) -> int:
    """Trunk, exits with gradients and two moments in fp32, and one batch's activations and logits."""
    architecture = trunk.architecture
    layer = sum(parameter.numel() for parameter in trunk.layer(0).parameters())
    weights = trunk.head_VH.numel() + layer * architecture.num_layers
    subset = config.training.head_tokens or architecture.vocab_size
    batch = config.training.batch_tokens * (40 * architecture.hidden_size + 4 * subset)
    return weights * trunk.head_VH.element_size() + len(exits) * 16 * layer + 4 * batch


def _measured(trunk: Trunk, depths: list[int], config: DistillConfig) -> tuple[float, float]:
    """Tokens per second of reading, and of training all exits."""
    generator = torch.Generator().manual_seed(0)
    vocab_size, num_layers = trunk.architecture.vocab_size, trunk.architecture.num_layers
    ids = torch.randint(0, vocab_size, (PROBE_EXAMPLES, PROBE_TOKENS), generator=generator)
    examples = [
        Example(task="probe", token_ids=tuple(row), num_prompt_tokens=1, source="probe") for row in ids.tolist()
    ]
    with torch.no_grad():
        reading_s = _timed(
            lambda: trunk.logits(trunk.norm(trunk.run(trunk.embed(ids.to(trunk.device)), range(num_layers))))
        )
    num_tokens = PROBE_EXAMPLES * PROBE_TOKENS
    cache = CachedTeacher(
        states={
            layer: torch.randn(num_tokens, trunk.architecture.hidden_size).bfloat16() for layer in (*depths, num_layers)
        },
        top_ids=torch.randint(0, vocab_size, (num_tokens, config.training.teacher_top_k)),
        top_logprobs=torch.zeros(num_tokens, config.training.teacher_top_k),
        entropy=torch.ones(num_tokens),
        offsets=tuple(range(0, num_tokens + 1, PROBE_TOKENS)),
    )
    objective = Objective(Teacher(trunk=trunk, cache=cache), config.training.head_tokens)
    batch = make_batch(range(PROBE_EXAMPLES), examples, cache, 0, 1.0)
    assert batch is not None
    models = [
        ExitModel(trunk, name=str(depth), depth=depth, copied_from=(num_layers - 1,), has_map=True) for depth in depths
    ]

    def step() -> None:
        head = objective.head(batch, generator, [objective.own])
        for exit in models:
            hidden = states(cache, batch, exit.depth, trunk.device).to(trunk.dtype)
            with torch.autocast(trunk.device.type, torch.bfloat16, enabled=trunk.dtype is torch.bfloat16):
                total_N, _ = objective.terms(exit, hidden, batch, head, {"soft_target_kl": 1.0}, 1.0)
            torch.autograd.backward(total_N.mean())

    return num_tokens / reading_s, num_tokens / _timed(step)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the second of two runs: the first one warms up."""
    work()
    started_s = time.monotonic()
    work()
    return time.monotonic() - started_s


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
