"""The transfer controller: stalls, rises, the band between them, bounds and resume."""

import json
import random
from typing import Any

import pytest

from models.distill.steering.transfer_control import TransferConfig, TransferController
from models.errors import ConfigError

# One step is one window of a million tokens: efficiency is the share of the loss that one step takes off.
CONFIG = TransferConfig(window_tokens=1_000_000, patience=2, stalled_below=0.1, rising_above=0.1)


def _after(*losses: float, config: TransferConfig = CONFIG) -> tuple[float, float]:
    controller = TransferController(config)
    for loss in losses:
        controller.observe(loss, 1_000_000)
    return round(controller.temperature, 6), round(controller.kd_weight, 6)


def test_controller_stays_while_the_student_learns() -> None:
    assert _after(8.0, 4.0, 3.0, 2.0, 1.0) == (2.0, 0.75)


def test_controller_sharpens_after_a_stall() -> None:
    assert _after(4.0, 3.9) == (2.0, 0.75)
    assert _after(4.0, 3.9, 3.8) == (1.6, 0.70)


def test_controller_softens_when_the_loss_rises() -> None:
    assert _after(2.0, 3.0, 4.0) == (2.5, 0.80)


def test_controller_wants_the_stall_to_last() -> None:
    assert _after(4.0, 3.9, 2.0, 1.95, 1.0) == (2.0, 0.75)
    # A stall and a rise are not two of a kind.
    assert _after(2.0, 1.95, 3.0, 2.95, 4.0) == (2.0, 0.75)


def test_controller_does_not_soften_within_the_band() -> None:
    # Up by 5 % is no rise but a stall.
    assert _after(2.0, 2.1, 2.2) == (1.6, 0.70)


def test_controller_judges_anew_after_a_move() -> None:
    stall = (4.0, 4.0, 4.0)
    # The first window after a move is only measured against, the second and third are a new stall.
    assert _after(*stall, 4.0, 4.0) == (1.6, 0.70)
    assert _after(*stall, 4.0, 4.0, 4.0) == (1.28, 0.65)


def test_controller_stays_within_bounds() -> None:
    assert _after(*[4.0] * 100) == (0.5, 0.5)
    assert _after(*[2.0**power for power in range(100)]) == (4.0, 0.95)


def test_controller_counts_tokens_not_steps() -> None:
    controller = TransferController(CONFIG)
    for loss in (1.0, 7.0, 3.0, 1.0):
        controller.observe(loss, 500_000)
        controller.observe(loss, 0)
    # Windows of mean 4 and 2: learning.
    controller.observe(2.0, 1_000_000)
    assert controller.temperature == 2.0
    controller.observe(2.0, 1_000_000)
    assert controller.temperature == pytest.approx(1.6)


def test_controller_efficiency_is_per_token() -> None:
    controller = TransferController(TransferConfig(window_tokens=10_000, patience=2, stalled_below=0.1))
    for loss in (2.0, 1.99, 1.98, 1.97):
        # Half a per cent over 10 000 tokens is half the loss over a million.
        controller.observe(loss, 10_000)
    assert controller.temperature == 2.0


@pytest.mark.parametrize("stop", [0, 3, 10, 17])
def test_resume_equals_uninterrupted(stop: int) -> None:
    config = TransferConfig(window_tokens=1000, patience=1)
    draw = random.Random(0)
    steps = [(draw.uniform(2, 3), draw.randrange(300, 900)) for _ in range(40)]
    through, first, resumed = (TransferController(config) for _ in range(3))
    for step in steps:
        through.observe(*step)
    for step in steps[:stop]:
        first.observe(*step)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in steps[stop:]:
        resumed.observe(*step)
    assert resumed.state_dict() == through.state_dict()
    assert resumed.temperature != config.temperature


def test_load_refuses_what_is_no_state() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        TransferController(CONFIG).load_state_dict({"kd_weight": 0.5})


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"window_tokens": 0}, "window_tokens must be at least 1, not 0"),
        ({"patience": 0}, "patience must be at least 1, not 0"),
        ({"stalled_below": -0.1}, "stalled_below must not be negative, not -0.1"),
        ({"temperature_factor": 1.2}, "temperature_factor must be above 0 and at most 1, not 1.2"),
        ({"temperature": 9.0}, "temperature must be above 0 and within lowest_temperature and highest_temperature"),
        (
            {"highest_kd_weight": 1.5},
            "kd_weight must be within lowest_kd_weight and highest_kd_weight, and those within 0 and 1",
        ),
    ],
)
def test_config_says_what_is_wrong(values: dict[str, Any], problem: str) -> None:
    assert TransferConfig().problems() == []
    assert TransferConfig(**values).problems() == [problem]
