"""An exit's map is fitted in closed form, and its weights leave it under the names that students are built from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.building.exits import PlannedExit, PlannedModule, read_exits, write_exits
from models.distill.network.decoder import Trunk
from models.distill.network.exit_model import ExitModel
from models.errors import ConfigError
from models.sources.source import ModelSource, open_source
from models.student.manifest import StudentPath
from tests.models.exit_files import plan_for

HIDDEN = 64


@pytest.fixture
def source(tiny_source: Callable[..., Path]) -> ModelSource:
    return open_source(tiny_source("llama"))


@pytest.fixture
def trunk(source: ModelSource) -> Trunk:
    return Trunk(source)


def exit_of(trunk: Trunk, **options: Any) -> ExitModel:
    settings: dict[str, Any] = {"name": "exit", "depth": 2, "copied_from": (3,), "has_map": True}
    return ExitModel(trunk, **settings | options)


def random_states(num_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def test_fit_map_recovers_a_linear_map(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.distill.network.exit_model.RIDGE", 1e-9)
    exit, inputs_NH = exit_of(trunk), random_states(300)
    map_HH, bias_H = random_states(HIDDEN, 1), random_states(1, 2)[0]
    assert exit.fit_map(inputs_NH, inputs_NH @ map_HH.T + bias_H) < 1e-6
    assert exit.map_HH is not None
    assert exit.map_bias_H is not None
    torch.testing.assert_close(exit.map_HH.detach(), map_HH, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(exit.map_bias_H.detach(), bias_H, rtol=1e-3, atol=1e-3)


def test_fit_map_reads_every_chunk(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs_NH = random_states(300)
    targets_NH = inputs_NH @ random_states(HIDDEN, 1) + random_states(300, 2)
    whole, in_parts = exit_of(trunk), exit_of(trunk)
    whole.fit_map(inputs_NH, targets_NH)
    monkeypatch.setattr("models.distill.network.exit_model.FIT_CHUNK_TOKENS", 77)
    in_parts.fit_map(inputs_NH, targets_NH)
    for one, other in zip(whole.trained(), in_parts.trained(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_fit_map_weighs_a_token_by_the_inverse_of_its_energy(trunk: Trunk) -> None:
    """Every state once asks for itself and once for ten times itself, which has a hundred times the energy."""
    exit, inputs_NH = exit_of(trunk), random_states(400)
    error = exit.fit_map(torch.cat((inputs_NH, inputs_NH)), torch.cat((inputs_NH, 10 * inputs_NH)))
    assert exit.map_HH is not None
    # (1 + 10 / 100) / (1 + 1 / 100); least squares on the bare states would say 5.5.
    torch.testing.assert_close(exit.map_HH.detach(), 1.1 / 1.01 * torch.eye(HIDDEN), rtol=0, atol=5e-3)
    # Half the tokens are 0.089 too long, half are 8.911 / 10 too short.
    assert error == pytest.approx((0.0891**2 + 0.8911**2) / 2, abs=5e-3)
    assert exit.map_error == error


def test_fit_map_bears_a_channel_that_is_always_zero(trunk: Trunk) -> None:
    exit, inputs_NH = exit_of(trunk), random_states(300)
    inputs_NH[:, 5] = 0.0
    assert exit.fit_map(inputs_NH, inputs_NH) < 1e-4
    assert exit.map_HH is not None
    assert exit.map_HH[5].abs().max() < 1e-3
    assert exit.map_HH[:, 5].abs().max() < 1e-3


def test_fit_map_refuses_what_cannot_be_fitted(trunk: Trunk) -> None:
    with pytest.raises(ConfigError, match="'exit': 127 tokens are too few to fit a map of 64 channels"):
        exit_of(trunk).fit_map(random_states(127), random_states(127))
    with pytest.raises(ConfigError, match="'exit' has no map"):
        exit_of(trunk, has_map=False).fit_map(random_states(128), random_states(128))


def test_an_exit_of_the_next_layer_is_the_full_depth(trunk: Trunk) -> None:
    exit = exit_of(trunk, depth=3)
    hidden_BTH = trunk.run(trunk.embed(torch.tensor([[5, 6, 7, 8]])), range(3))
    torch.testing.assert_close(exit(hidden_BTH), trunk.norm(trunk.run(hidden_BTH, range(3, 4))))
    assert exit.target_layer == 3
    assert exit_of(trunk, copied_from=()).target_layer == 4


def test_training_an_exit_leaves_the_trunk(trunk: Trunk) -> None:
    exit, before = exit_of(trunk), trunk.layer(3).get_parameter("mlp__up_proj__weight").clone()
    optimiser = torch.optim.SGD(exit.trained(), lr=1.0)
    exit(random_states(4)[None]).square().sum().backward()
    optimiser.step()
    changed = dict(exit.tensors())["layers.0.mlp.up_proj.weight"]
    assert not torch.equal(changed, before)
    assert torch.equal(trunk.layer(3).get_parameter("mlp__up_proj__weight"), before)
    # Map and bias, seven matrices less the norms' two vectors: nothing else is trained, and nothing is left out.
    assert len(exit.trained()) == 2 + 7 + 2


@pytest.mark.parametrize("precision", ["int8", "w8a8"])
def test_a_quantised_exit_computes_otherwise_and_keeps_its_weights(trunk: Trunk, precision: str) -> None:
    exit, hidden_BTH = exit_of(trunk), random_states(4)[None]
    before, weights = exit(hidden_BTH), {name: value.clone() for name, value in exit.tensors().items()}
    exit.quantise(precision)
    assert exit.precision == precision
    difference = (exit(hidden_BTH) - before).abs().mean() / before.abs().mean()
    assert 1e-4 < difference < 0.5
    assert all(torch.equal(value, weights[name]) for name, value in exit.tensors().items())


@pytest.mark.parametrize(("copied_from", "has_map"), [((3,), True), ((2, 3), True), ((3,), False), ((), True)], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_tensors_are_those_of_an_exits_file(
    tiny_source: Callable[..., Path], tmp_path: Path, family: str, copied_from: tuple[int, ...], has_map: bool
) -> None:
    source = open_source(tiny_source(family))
    exit = exit_of(Trunk(source), copied_from=copied_from, has_map=has_map)
    planned = PlannedExit(name="exit", after="knowledge", num_blocks=len(copied_from), has_map=has_map)
    modules = (PlannedModule(name="knowledge", num_layers=2), PlannedModule(name="adapter", num_layers=2))
    path = StudentPath(name="fast", modules=("knowledge",), exit="exit")
    plan = plan_for(source, exits=(planned,), modules=modules, paths=(path,), tasks={}, depth_rules=())
    tensors = {f"exit.{name}": value.numpy() for name, value in exit.tensors().items()}
    write_exits(tmp_path / "exits.safetensors", plan, tensors)
    read_exits(tmp_path / "exits.safetensors").check(source)
