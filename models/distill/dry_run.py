"""`--dry-run`: what a run would do, how long it would take here, and the memory, disk and teacher answers it needs.

The time and memory of training are those of the trainer itself, on a few batches of random tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from models.architecture import Architecture
from models.distill.config import AUTO, DistillConfig, ExitConfig
from models.distill.cutting.layout import Layout, check_tasks, planned_exits
from models.distill.data.examples import Example, encode_rows
from models.distill.data.labels import is_wanted
from models.distill.data.mixture import quotas
from models.distill.data.preparation import clean, refuse_unwritten
from models.distill.data.report import DataReport, report_of
from models.distill.data.rows import Row
from models.distill.distiller import Distiller
from models.distill.run.rehearsal import Rehearsal
from models.student.cut import default_modules, parse_modules

GIB = 2**30

TaskTokens = Mapping[str, float]


@dataclass(slots=True, kw_only=True, frozen=True)
class RunPlan:
    """Units: tokens, seconds, bytes. `num_exit_tokens` counts a token once for every exit (and branch) it trains.

    Rates are measured on a few batches of random tokens, so times are rough. `memory_bytes` None: not measured here.
    """

    data: DataReport
    cut: str
    exits: tuple[str, ...]
    num_new_prompts: int
    num_unanswered: int
    num_tokens: int
    num_trained_tokens: int
    num_exit_tokens: int
    reading_s: float
    training_s: float
    cache_bytes: int
    memory_bytes: int | None

    def text(self) -> str:
        """What `fenhe distill --dry-run` prints."""
        memory = "not measured on this system" if self.memory_bytes is None else f"{self.memory_bytes / GIB:.1f} GiB"
        lines = [
            self.data.text(),
            "",
            f"cut        {self.cut}",
            *(f"exit       {exit}" for exit in self.exits),
            f"prompts    {self.num_new_prompts:,} more are written first, and are not counted below",
            f"answers    {self.num_unanswered} prompts have none, or are to have the teacher's, and are answered first",
            f"reading    {self.num_tokens:,} tokens with the teacher, about {_span(self.reading_s)}, "
            f"{self.cache_bytes / GIB:.1f} GiB of disk",
            f"training   {self.num_trained_tokens:,} tokens, {self.num_exit_tokens:,} through an exit, "
            f"about {_span(self.training_s)}",
            f"memory     {memory} at the peak of a rehearsal; a long run takes more (memory fragments),",
            f"           and up to {self.cache_bytes / GIB:.1f} GiB of disk cache that the system takes back at need",
            "           times are for a machine as quiet as it was just now; they leave out the writing of answers",
        ]
        return "\n".join(lines)


def plan_run(distiller: Distiller) -> RunPlan:
    """Reads the data and rehearses a few steps; writes nothing and asks the teacher for no answers.

    Answers that are missing are counted as long as they may be. Raises: ConfigError.
    """
    config, source = distiller.config, distiller.source
    cleaned = clean(config.data_settings, config.seed)
    check_tasks(config, {row.task for row in cleaned.training})
    open_rows = [_as_asked(row, config) for row in cleaned.training]
    num_unanswered = sum(row.answer is None for row in (*open_rows, *cleaned.held_out))
    if config.transfer == "sequence":
        refuse_unwritten(sum(row.answer is None for row in open_rows))
    examples, too_long = encode_rows(open_rows, source.tokenizer(), config.text.max_tokens)
    tokens = _taken(examples, config)
    layout = _layout(distiller)
    rate = Rehearsal(config, distiller.teachers, layout).measured()
    num_tokens = int(sum(tokens.values()))
    num_exit_tokens = _exit_tokens(tokens, layout.exits, config)
    further = [source.architecture for source in distiller.teachers.further_sources.values()]
    return RunPlan(
        data=report_of(
            read=cleaned.read, dropped=[*cleaned.dropped, too_long], held_out=cleaned.held_out, examples=examples
        ),
        cut=", ".join(f"{m.name}:{m.num_layers}" for m in layout.modules)
        + (" (or what the analysis of the layers chooses)" if config.modules == AUTO else ""),
        exits=tuple(_described(exit, layout) for exit in layout.exits),
        num_new_prompts=0 if config.prompts is None else sum(config.prompts.wanted.values()),
        num_unanswered=num_unanswered,
        num_tokens=num_tokens,
        num_trained_tokens=int(num_tokens * _epochs(config)),
        num_exit_tokens=num_exit_tokens,
        reading_s=num_tokens / rate.reading * _reading_work(source.architecture, further),
        training_s=num_exit_tokens / rate.training,
        cache_bytes=num_tokens * sum(_cache_bytes(source.architecture, further, layout, config)),
        memory_bytes=rate.memory_bytes,
    )


def _as_asked(row: Row, config: DistillConfig) -> Row:
    """The row without its answer, where the teacher's answer is to replace it."""
    return replace(row, answer=None) if is_wanted(row, config.labels) else row


def _layout(distiller: Distiller) -> Layout:
    config, num_layers = distiller.config, distiller.source.architecture.num_layers
    modules = default_modules(num_layers) if config.modules == AUTO else parse_modules(config.modules, num_layers)
    return Layout(modules=modules, exits=planned_exits(config, modules))


def _described(exit: ExitConfig, layout: Layout) -> str:
    return (
        f"{exit.exit_name} behind {layout.depth(exit)} layers, copy of layers {exit.copied_from}, "
        f"on {', '.join(exit.tasks) or 'all tasks'}"
    )


def _taken(examples: Sequence[Example], config: DistillConfig) -> TaskTokens:
    """Tokens of every task, as the preparation will choose them; answers not written yet count at full length."""
    found: dict[str, int] = {}
    for example in examples:
        is_unanswered = example.num_tokens == example.num_prompt_tokens
        size = example.num_tokens + is_unanswered * config.labels.max_tokens
        found[example.task] = found.get(example.task, 0) + min(size, config.text.max_tokens)
    text = config.text
    bounded = {task: min(size, text.task_tokens.get(task, size)) for task, size in found.items()}
    if text.task_share is not None:
        return quotas(bounded, text.task_share, text.max_train_tokens)
    if text.max_train_tokens is None:
        return bounded
    # A budget alone: general text counts as one more task.
    equal = quotas({f"{task} ": size for task, size in bounded.items()}, 1.0, text.max_train_tokens)
    return {task.rstrip(): size for task, size in equal.items()}


def _epochs(config: DistillConfig) -> float:
    return config.training.epochs + (config.branches.epochs if config.branches is not None else 0)


def _exit_tokens(tokens: TaskTokens, exits: Sequence[ExitConfig], config: DistillConfig) -> int:
    """A branch learns one task of an exit that learns all: an exit's branches together see what it sees in an epoch."""
    total = sum(tokens.values())
    found = 0.0
    for exit in exits:
        seen = sum(tokens.get(task, 0) for task in exit.tasks) if exit.tasks else total
        found += seen * (config.training.epochs if exit.tasks else _epochs(config))
    return int(found)


def _reading_work(own: Architecture, further: Sequence[Architecture]) -> float:
    """What reading costs with all teachers, as a multiple of the own teacher alone: by their numbers of weights."""
    return 1 + sum(_num_weights(one) for one in further) / _num_weights(own)


def _num_weights(architecture: Architecture) -> int:
    attention = 2 * architecture.hidden_size * (architecture.q_size + architecture.kv_size)
    layer = attention + 3 * architecture.hidden_size * architecture.intermediate_size
    return layer * architecture.num_layers + architecture.vocab_size * architecture.hidden_size


def _cache_bytes(
    own: Architecture, further: Sequence[Architecture], layout: Layout, config: DistillConfig
) -> list[int]:
    """Bytes per token, for every teacher."""
    other = 6 * config.training.teacher_top_k + 4
    own_states = 2 * own.hidden_size * len(layout.state_layers | {own.num_layers})
    return [other + own_states, *(other + 2 * one.hidden_size for one in further)]


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
