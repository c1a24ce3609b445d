"""A leg of training on a tiny model: it learns, it can be killed, and it belongs to one run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.distill.data.examples import Example
from models.distill.narrowing.calibration import calibrate
from models.distill.narrowing.elimination import eliminate, refit
from models.distill.narrowing.optimiser import TurnedAdam, principal_directions
from models.distill.narrowing.training import Leg, LegProgress, frequent_tokens
from models.distill.network.decoder import Trunk
from models.distill.network.narrow_model import LayerStart, NarrowModel
from models.distill.run.heldout import score_widths
from models.distill.steering.schedules import LearningRateSchedule
from models.distill.width_settings import LegSettings
from models.errors import ConfigError, StepFailed
from models.sources.source import open_source

WIDTHS = ("half", "quarter")
RATE = LearningRateSchedule(peak=2e-3, warmup_share=0.05, floor_share=0.1)


def examples(count: int = 48) -> list[Example]:
    generator = torch.Generator().manual_seed(4)
    found = []
    for index in range(count):
        ids = torch.randint(5, 90, (12 + index % 5,), generator=generator).tolist()
        found.append(Example(task=("a", "b")[index % 2], token_ids=tuple(ids), num_prompt_tokens=4, source=""))
    return found


@pytest.fixture
def parts(tiny_source: Callable[..., Path]) -> tuple[NarrowModel, list[torch.Tensor]]:
    torch.set_num_threads(1)
    source = open_source(tiny_source("llama"))
    trunk, starts = Trunk(source), []
    moments = calibrate(trunk, examples(), prompt_weight=0.3).moments
    size = source.architecture.intermediate_size
    for layer, moment in enumerate(moments):
        down = torch.from_numpy(source.read(f"model.layers.{layer}.mlp.down_proj.weight"))
        order = eliminate(down, moment, least=size // 4).order_I
        kept = {"half": size // 2, "quarter": size // 4}
        starts.append(
            LayerStart(order_I=order, down_HK={name: refit(down, moment, order[:k]) for name, k in kept.items()})
        )
    return NarrowModel(trunk, starts, trains_output=True), list(moments)


def settings(**fields: Any) -> LegSettings:
    chosen: dict[str, Any] = {"max_seconds": 1e9, "batch_tokens": 64, "frequent_tokens": 40, "head_tokens": 20}
    return LegSettings(**(chosen | {"learning_rate": RATE} | fields))


def leg(parts: tuple[NarrowModel, list[torch.Tensor]], folder: Path | None = None, **fields: Any) -> Leg:
    run, text = fields.pop("run", '{"data": "1"}'), examples(fields.pop("count", 48))
    return Leg(parts[0], WIDTHS, text, settings(**fields), parts[1], run=run, checkpoints=folder)


def test_all_widths_learn(parts: Any) -> None:
    before = {one.exit: one.kl for one in score_widths(parts[0], WIDTHS, examples())}
    progress = leg(parts, count=300).train()
    after = {one.exit: one.kl for one in score_widths(parts[0], WIDTHS, examples())}
    assert progress.num_tokens == sum(one.num_tokens for one in examples(300))
    assert all(after[width] < 0.95 * before[width] for width in WIDTHS), (before, after)


def test_a_width_that_is_never_drawn_still_gains_by_the_shared_changes(parts: Any) -> None:
    leg(parts, draws={"half": 1.0}).train()
    down = next(parts[0].narrow_layers()).down_change
    assert down.abs().sum() > 0


def test_a_leg_ends_at_its_tokens(parts: Any) -> None:
    progress = leg(parts, max_tokens=100).train()
    assert 100 <= progress.num_tokens < 100 + 64
    assert progress.num_batches == progress.step


def test_a_killed_leg_ends_like_one_that_was_not(parts: Any, tmp_path: Path) -> None:
    model = parts[0]
    begin = {name: value.clone() for name, value in model.state_dict().items()}
    leg(parts).train()
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(begin)

    class Killed(Exception):
        pass

    def kill(progress: LegProgress) -> None:
        if progress.step == 5:
            raise Killed

    broken = leg(parts, tmp_path, checkpoint_s=1e-9)
    broken._report = kill
    with pytest.raises(Killed):
        broken.train()
    model.load_state_dict(begin)
    resumed = leg(parts, tmp_path, checkpoint_s=1e9)
    resumed.train(resume=True)
    assert resumed.progress.num_tokens == sum(one.num_tokens for one in examples())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0)


def test_the_log_has_every_fifth_step_and_the_last_once(parts: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    one = leg(parts, tmp_path / "checkpoints", log_steps=5)
    one._log = log
    steps = one.train().step
    assert steps % 5
    wanted = [*range(5, steps, 5), steps]
    again = leg(parts, tmp_path / "checkpoints", log_steps=5)
    again._log = log
    with log.open("a") as lines:
        lines.write('{"step": 99, "num_tokens": 9999, "loss": 1.0}\n')  # beyond the checkpoint
    again.train(resume=True)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == wanted


def test_a_checkpoint_of_another_run_is_refused(parts: Any, tmp_path: Path) -> None:
    leg(parts, tmp_path).train()
    with pytest.raises(ConfigError, match="other data"):
        leg(parts, tmp_path, run='{"data": "2"}').train(resume=True)


def test_a_loss_that_is_not_finite_stops_the_leg(parts: Any) -> None:
    with torch.no_grad():
        next(parts[0].narrow_layers()).down_change.fill_(float("nan"))
    with pytest.raises(StepFailed, match=r"learning_rate\.peak"):
        leg(parts).train()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draws": {"third": 1.0}}, "there is no width 'third'"),
        ({"draws": {"half": 0.0}}, "some width more than 0"),
        ({"batch_tokens": 0}, "batch_tokens must be above 0"),
        ({"prompt_weight": 1.5}, "prompt_weight"),
        ({"learning_rate": LearningRateSchedule(peak=-1.0)}, "peak must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(parts: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        leg(parts, **fields)


def test_no_text_is_refused(parts: Any) -> None:
    with pytest.raises(ConfigError, match="no text"):
        Leg(parts[0], WIDTHS, [], settings(), parts[1], run="{}")


def test_frequent_tokens_come_first() -> None:
    one = Example(task="a", token_ids=(7, 3, 3, 9, 9, 9), num_prompt_tokens=0, source="")
    assert frequent_tokens([one], 2).tolist() == [9, 3]
    assert frequent_tokens([one], 0).tolist() == []


def test_without_a_basis_it_is_adam() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(4, 6, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    turned = TurnedAdam([ours], [None], (0.9, 0.95))
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.95))
    for _ in range(5):
        gradient = torch.randn(4, 6, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        turned.step(0.01)
        adam.step()
    torch.testing.assert_close(ours, theirs)


def test_with_a_basis_it_is_adam_on_the_turned_matrix() -> None:
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    start = torch.randn(4, 6, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start @ basis)
    turned, plain = TurnedAdam([ours], [basis], (0.9, 0.95)), TurnedAdam([theirs], [None], (0.9, 0.95))
    for _ in range(5):
        gradient = torch.randn(4, 6, generator=generator)
        ours.grad, theirs.grad = gradient, gradient @ basis
        turned.step(0.01)
        plain.step(0.01)
    torch.testing.assert_close(ours @ basis, theirs, rtol=1e-4, atol=1e-5)


def test_the_optimiser_goes_on_from_its_state() -> None:
    one, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    first, second = (TurnedAdam([value], [None], (0.9, 0.95)) for value in (one, other))
    one.grad = other.grad = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    first.step(0.1)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        other.copy_(one)
    first.step(0.1)
    second.step(0.1)
    assert torch.equal(one, other)


def test_principal_directions_are_of_the_neurons_in_their_order() -> None:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(6, 6, generator=generator)
    moment, order = root @ root.T, torch.tensor([4, 2, 0, 1, 3, 5])
    basis = principal_directions(moment, order, 4)
    turned = basis.T @ moment[order[:4]][:, order[:4]] @ basis
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4), rtol=1e-5, atol=1e-5)
