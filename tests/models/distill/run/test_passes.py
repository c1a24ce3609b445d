"""One pass: gradients and figures for the exits that learn the batch's task, the same ones for the same number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.distill.config import DistillConfig, config_from
from models.distill.network.decoder import Trunk
from models.distill.network.exit_model import ExitModel
from models.distill.run.loss_weights import LossWeights
from models.distill.run.passes import Passes, Sums, gradient_norms
from models.distill.run.teacher_choice import TeacherChoice
from models.distill.steering.adaptive_weights import AdaptiveWeights
from models.sources.source import open_source
from tests.models.distill.tiny_teacher import examples_of, teacher_of

EXAMPLES = examples_of(9, 14, 6)


@pytest.fixture
def config() -> DistillConfig:
    return config_from({"teacher": "a", "data": "b", "out": "c", "training": {"head_tokens": 32}}, "test")


@pytest.fixture
def trunk(tiny_source: Callable[..., Path]) -> Trunk:
    return Trunk(open_source(tiny_source("llama")))


def exit_of(trunk: Trunk, name: str, **options: Any) -> ExitModel:
    return ExitModel(trunk, name=name, depth=2, copied_from=(3,), has_map=False, **options)


def run(config: DistillConfig, exits: list[ExitModel], folder: Path, number: int = 0, times: int = 1) -> Sums:
    own = teacher_of(exits[0].trunk, EXAMPLES, folder)
    weights = LossWeights(config, exits, AdaptiveWeights(config, [exit.name for exit in exits]))
    passes = Passes(config, exits, EXAMPLES, TeacherChoice(config, own, {}), weights)
    sums: Sums = {exit.name: {} for exit in exits}
    for _ in range(times):
        assert passes.run(range(len(EXAMPLES)), number, step=0, share=0.5, sums=sums) in (0, 29)
    return sums


def test_a_pass_trains_the_exits_of_its_task(config: DistillConfig, trunk: Trunk, tmp_path: Path) -> None:
    exits = [exit_of(trunk, "all"), exit_of(trunk, "math", tasks=("math",)), exit_of(trunk, "fact", tasks=("fact",))]
    sums = run(config, exits, tmp_path)
    assert sums["all"] == sums["math"]
    assert sums["all"].keys() == {"loss", "passes", "soft_target_kl", "task_cross_entropy"}
    assert sums["fact"] == {}
    norms = gradient_norms(exits)
    assert norms.keys() == {"all", "math"}
    assert norms["all"] == pytest.approx(norms["math"])
    assert norms["all"] > 0


def test_passes_add_up_and_share_the_gradient_of_their_step(
    config: DistillConfig, trunk: Trunk, tmp_path: Path
) -> None:
    one, two = exit_of(trunk, "a"), exit_of(trunk, "a")
    first = run(config, [one], tmp_path)
    halves = replace(config, training=replace(config.training, accumulate=2))
    second = run(halves, [two], tmp_path, times=2)
    assert second["a"] == {name: pytest.approx(2 * value) for name, value in first["a"].items()}
    assert gradient_norms([two])["a"] == pytest.approx(gradient_norms([one])["a"], rel=1e-5)


def test_a_pass_is_random_by_its_number_alone(config: DistillConfig, trunk: Trunk, tmp_path: Path) -> None:
    losses = [run(config, [exit_of(trunk, "a")], tmp_path, number)["a"]["loss"] for number in (5, 6, 5)]
    torch.manual_seed(9)
    assert losses[0] == losses[2] != losses[1]


def test_a_batch_for_nobody_counts_no_tokens(config: DistillConfig, trunk: Trunk, tmp_path: Path) -> None:
    fact = exit_of(trunk, "fact", tasks=("fact",))
    assert run(config, [fact], tmp_path) == {"fact": {}}
    assert gradient_norms([fact]) == {}
