"""What both sides train: a teacher, where its exits are, and text in lengths like those of training rows."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from bench.workload import DEFAULT_TEXT, read_workload
from models.distill.config import DistillConfig, TrainingSettings
from models.distill.cutting.layout import Layout, planned_exits
from models.distill.data.examples import Example
from models.distill.network.decoder import Trunk
from models.distill.run.device import choose_device, choose_float_type
from models.distill.run.order import plan_order
from models.distill.steering.schedules import Stage
from models.distill.teacher.open_teacher import open_teacher
from models.errors import ConfigError
from models.sources.source import ModelSource
from models.student.cut import default_modules, parse_modules

SHORTEST_TOKENS, LONGEST_TOKENS = 48, 320
TASK = "general"
SOFT_TARGETS_ALONE = (Stage(name="soft_targets", share=1.0, weights={"soft_target_kl": 1.0}),)
"""The peer's loss, at the temperature 1 that is our default too."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Work:
    """`config` trains one epoch; `order` are the batches of that epoch, which both sides take."""

    config: DistillConfig
    source: ModelSource
    trunk: Trunk
    layout: Layout
    examples: list[Example]
    order: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(example.num_tokens for example in self.examples)


def prepare_work(
    teacher: Path,
    *,
    modules: str | None,
    num_tokens: int,
    batch_tokens: int,
    is_whole_vocabulary: bool,
    device: str = "auto",
) -> Work:
    """Read the teacher as a whole, so that no time is spent on that later.

    Raises: ConfigError when the text is too short to fit the exits' maps, or the cut leaves no exit.
    """
    source = open_teacher(str(teacher))
    architecture = source.architecture
    if num_tokens < 2 * architecture.hidden_size:
        raise ConfigError(f"--tokens must be at least twice the hidden size, {2 * architecture.hidden_size}")
    training = TrainingSettings(epochs=1.0, batch_tokens=batch_tokens)
    if is_whole_vocabulary:
        training = replace(training, head_tokens=None)
    config = DistillConfig(teacher=str(teacher), data=(), out="bench", training=training, stages=SOFT_TARGETS_ALONE)
    num_layers = architecture.num_layers
    cut = default_modules(num_layers) if modules is None else parse_modules(modules, num_layers)
    layout = Layout(modules=cut, exits=planned_exits(config, cut))
    if not layout.exits:
        raise ConfigError("there is no exit to train: --modules must name at least two modules")
    place = choose_device(device)
    trunk = Trunk(source, choose_float_type(place), place)
    for index in range(num_layers):
        trunk.layer(index)
    examples = draw_examples(source, num_tokens)
    order = plan_order(examples, config)
    return Work(config=config, source=source, trunk=trunk, layout=layout, examples=examples, order=order)


def draw_examples(source: ModelSource, num_tokens: int) -> list[Example]:
    """Windows of held-out text, at least `num_tokens` in all. Every token but the last is trained on, as in a text."""
    workload = read_workload(DEFAULT_TEXT, source.tokenizer())
    longest = min(LONGEST_TOKENS, source.architecture.max_context_tokens)
    draw = random.Random(0)
    examples: list[Example] = []
    while sum(example.num_tokens for example in examples) < num_tokens:
        ids = workload.window(draw.randint(SHORTEST_TOKENS, longest))
        examples.append(Example(task=TASK, token_ids=ids, num_prompt_tokens=0, source=DEFAULT_TEXT.name))
    return examples
