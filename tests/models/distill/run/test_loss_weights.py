"""What a loss counts: the stage's weights, unless the exit has its own, and alignment on top of either."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from models.distill.config import config_from
from models.distill.network.exit_model import ExitModel
from models.distill.run.loss_weights import LossWeights
from models.distill.steering.adaptive_weights import AdaptiveWeights

STAGES = [
    {"name": "first", "share": 0.5, "weights": {"soft_target_kl": 1.0}, "temperature": 3.0},
    {"name": "second", "share": 0.5, "weights": {"soft_target_kl": 0.5, "task_cross_entropy": 0.5}},
]


def exit_of(name: str, map_error: float = 0.0, **losses: float) -> ExitModel:
    return cast(ExitModel, SimpleNamespace(name=name, map_error=map_error, losses=losses))


def weights_of(*exits: ExitModel, **values: Any) -> LossWeights:
    config = config_from({"teacher": "a", "data": "b", "out": "c", "stages": STAGES, **values}, "test")
    return LossWeights(config, exits, AdaptiveWeights(config, [exit.name for exit in exits]))


def test_weights_and_temperature_are_the_stages() -> None:
    exit = exit_of("a")
    weights = weights_of(exit, temperature={"start": 2.0, "end": 1.0})
    assert weights.at(0.25, exit) == ({"soft_target_kl": 1.0}, 3.0)
    later, temperature = weights.at(0.75, exit)
    assert later == {"soft_target_kl": 0.5, "task_cross_entropy": 0.5}
    assert temperature == pytest.approx(1.25)


def test_an_exits_own_losses_take_the_place_of_the_stages() -> None:
    exit = exit_of("a", jensen_shannon=1.0)
    assert weights_of(exit).at(0.25, exit) == ({"jensen_shannon": 1.0}, 3.0)


def test_the_controller_has_the_temperature() -> None:
    exit = exit_of("a")
    assert weights_of(exit, weighting="controller", controller={"temperature": 1.5}).at(0.25, exit)[1] == 1.5


def test_alignment_grows_at_the_exit_with_the_largest_error_first() -> None:
    good, bad = exit_of("good", 0.1), exit_of("bad", 0.9, jensen_shannon=1.0)
    weights = weights_of(good, bad, alignment={"weight": 0.2, "grown_at": 0.5})
    assert weights.at(0.25, bad)[0] == {"jensen_shannon": 1.0, "module_alignment": 0.2}
    assert weights.at(0.25, good)[0] == {"soft_target_kl": 1.0, "module_alignment": 0.0}
    assert weights.at(0.5, good)[0]["module_alignment"] == 0.2
