"""In which order a run sees its examples: planned as a whole from the seed, so that resuming needs no memory."""

import random
from collections.abc import Sequence

from models.distill.config import DistillConfig
from models.distill.data.examples import Example, batches
from models.distill.data.mixture import GENERAL
from models.distill.steering.schedules import DataMix, task_share_at


def plan_order(examples: Sequence[Example], config: DistillConfig) -> list[list[int]]:
    """Every pass of the run: example indices of one task each, `epochs` times over the examples."""
    epochs = config.training.epochs
    order: list[list[int]] = []
    for epoch in range(int(epochs) + (epochs % 1 > 0)):
        found = _epoch(examples, config, epoch)
        order += found[: round(len(found) * min(1.0, epochs - epoch))]
    return order if config.mix is None else _mixed(order, examples, config.mix, config.seed)


def _epoch(examples: Sequence[Example], config: DistillConfig, epoch: int) -> list[list[int]]:
    """Batches of one task each: exits that do not learn the task have nothing to do then."""
    by_task: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        by_task.setdefault(example.task, []).append(index)
    found: list[list[int]] = []
    for task in sorted(by_task):
        members = by_task[task]
        groups = batches(
            [examples[index].num_tokens for index in members],
            config.training.batch_tokens,
            seed=config.seed,
            epoch=epoch,
        )
        found += [[members[place] for place in group] for group in groups]
    random.Random(f"{config.seed}/order/{epoch}").shuffle(found)
    return found


def _mixed(order: list[list[int]], examples: Sequence[Example], mix: DataMix, seed: int) -> list[list[int]]:
    """The same number of passes, each drawn from general or task text by the schedule's share; a side that runs out
    begins again."""
    general = [batch for batch in order if examples[batch[0]].task == GENERAL]
    task = [batch for batch in order if examples[batch[0]].task != GENERAL]
    if not general or not task:
        return order
    draw = random.Random(f"{seed}/mix")
    taken = {True: 0, False: 0}
    found = []
    for step in range(len(order)):
        is_task = draw.random() < task_share_at(mix, step / len(order))
        side = task if is_task else general
        found.append(side[taken[is_task] % len(side)])
        taken[is_task] += 1
    return found
