"""Branch and merge: an exit that learned all tasks is trained further for each, and the results are merged.

Source: TinyR1 (arXiv 2503.04872, section 3), with the merge of `models.distill.network.merge`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from models.distill.config import BranchSettings, DistillConfig
from models.distill.data.examples import Example
from models.distill.loss.objective import Teacher
from models.distill.network.exit_model import ExitModel
from models.distill.network.merge import average, fuse
from models.distill.run.identity import branches_key
from models.distill.run.progress import Reporter
from models.distill.run.trainer import Trainer


def train_branches(
    config: DistillConfig,
    settings: BranchSettings,
    exits: Sequence[ExitModel],
    examples: Sequence[Example],
    own: Teacher,
    *,
    further: Mapping[str, Teacher],
    run: str,
    resume: bool,
    keep: bool,
    report: Reporter,
) -> None:
    """Replace the weights of every exit that learned all tasks by the merge of its branches.

    Raises: what `Trainer.train` raises.
    """
    tasks = sorted({example.task for example in examples})
    branches = {exit.name: [exit.branch(task) for task in tasks] for exit in exits if not exit.tasks}
    if not branches:
        return
    trainer = Trainer(
        _branch_config(config, settings),
        [branch for members in branches.values() for branch in members],
        examples,
        own,
        run=branches_key(run, settings),
        further=further,
        keep=keep,
        report=report,
    )
    trainer.train(resume=resume)
    for exit in exits:
        if exit.name in branches:
            _merge(exit, branches[exit.name], settings)


def _branch_config(config: DistillConfig, settings: BranchSettings) -> DistillConfig:
    return replace(
        config,
        work=str(config.work_folder.branches.path),
        training=replace(config.training, epochs=settings.epochs),
        learning_rate=replace(config.learning_rate, peak=config.learning_rate.peak * settings.learning_rate_share),
    )


@torch.no_grad()
def _merge(exit: ExitModel, branches: Sequence[ExitModel], settings: BranchSettings) -> None:
    states = [branch.state_dict() for branch in branches]
    merged = fuse(exit.state_dict(), states) if settings.merge == "importance" else average(states)
    exit.load_state_dict({name: value.float() for name, value in merged.items()})
