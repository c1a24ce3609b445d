"""Schedules at the points where they can be worked out by hand, and what their configs refuse."""

from collections.abc import Sequence
from typing import Any

import pytest

from models.distill.steering.schedules import (
    LOSS_NAMES,
    PROGRESSIVE,
    SOFT_TARGETS_ONLY,
    AlignmentGrowth,
    DataMix,
    LearningRateSchedule,
    Stage,
    TemperatureSchedule,
    alignment_weights_at,
    learning_rate_at,
    stage_at,
    stage_problems,
    task_share_at,
    temperature_at,
)


@pytest.mark.parametrize(
    ("progress", "rate"),
    [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.4, 0.8681981), (0.6, 0.55), (0.8, 0.2318019), (1.0, 0.1)],
)
def test_learning_rate_warms_up_and_falls_to_the_floor(progress: float, rate: float) -> None:
    schedule = LearningRateSchedule(peak=1.0, warmup_share=0.2, floor_share=0.1)
    assert learning_rate_at(schedule, progress) == pytest.approx(rate, abs=1e-6)


def test_learning_rate_without_warm_up_begins_at_the_peak() -> None:
    schedule = LearningRateSchedule(peak=3e-4, warmup_share=0.0, floor_share=0.0)
    assert learning_rate_at(schedule, 0.0) == pytest.approx(3e-4)
    assert learning_rate_at(schedule, 1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "temperatures"),
    [("linear", (2.0, 1.625, 1.25, 0.875, 0.5)), ("cosine", (2.0, 1.780330, 1.25, 0.719670, 0.5))],
)
def test_temperature_falls_from_start_to_end(shape: Any, temperatures: Sequence[float]) -> None:
    schedule = TemperatureSchedule(shape=shape)
    found = [temperature_at(schedule, quarter / 4) for quarter in range(5)]
    assert found == pytest.approx(temperatures, abs=1e-6)


def test_stage_at_walks_through_the_stages() -> None:
    stages = [Stage(name=name, share=share, weights={}) for name, share in (("a", 0.25), ("b", 0.5), ("c", 0.25))]
    walk = [(0.0, "a", 0.0), (0.125, "a", 0.5), (0.25, "b", 0.0), (0.5, "b", 0.5), (0.75, "c", 0.0), (1.0, "c", 1.0)]
    for progress, name, within in walk:
        stage, inner = stage_at(stages, progress)
        assert stage.name == name
        assert inner == pytest.approx(within)


def test_the_stages_that_come_with_it_are_sound() -> None:
    assert stage_problems(PROGRESSIVE) == []
    assert stage_problems(SOFT_TARGETS_ONLY) == []
    assert [stage.name for stage in PROGRESSIVE] == ["features", "attention", "soft_targets"]
    assert PROGRESSIVE[1].weights["attention_transfer"] == 0.5
    assert (PROGRESSIVE[2].weights["soft_target_kl"], PROGRESSIVE[2].temperature) == (0.8, 3.0)
    weights = SOFT_TARGETS_ONLY[0].weights
    assert weights["soft_target_kl"] == 3 * weights["task_cross_entropy"]


def test_loss_names_are_functions() -> None:
    from models.distill.loss import head, hidden

    assert all(callable(getattr(head, name, None) or getattr(hidden, name)) for name in LOSS_NAMES)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"share": 0.0}, "share must be above 0 and at most 1, not 0.0"),
        ({"weights": {"kd": 1.0}}, f"weights.kd is not a loss: name one of {', '.join(LOSS_NAMES)}"),
        ({"weights": {"hidden_mse": -1.0, "hidden_cosine": 1.0}}, "weights.hidden_mse must not be negative, not -1.0"),
        ({"weights": {"hidden_mse": 0.0}}, "weights must give some loss more than 0"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
    ],
)
def test_stage_says_what_is_wrong(values: dict[str, Any], problem: str) -> None:
    sound: dict[str, Any] = {"name": "only", "share": 1.0, "weights": {"hidden_mse": 1.0}}
    assert Stage(**sound).problems() == []
    assert Stage(**(sound | values)).problems() == [f"stage 'only': {problem}"]


def test_stages_must_fill_the_run_under_different_names() -> None:
    stage = Stage(name="a", share=0.4, weights={"hidden_mse": 1.0})
    assert stage_problems([stage, stage]) == [
        "the stage name 'a' is used twice",
        "the shares of the stages must add up to 1, not 0.8",
    ]


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.0), (0.29, 0.0), (0.3, 0.0), (0.35, 0.35), (0.4, 0.7), (1.0, 0.7)]
)
def test_task_share_joins_after_the_general_stage(progress: float, share: float) -> None:
    assert task_share_at(DataMix(), progress) == pytest.approx(share)


def test_task_share_without_stage_or_ramp_is_constant() -> None:
    mix = DataMix(general_stage=0.0, ramp=0.0)
    assert [task_share_at(mix, progress) for progress in (0.0, 0.5, 1.0)] == [0.7, 0.7, 0.7]


@pytest.mark.parametrize(
    ("progress", "weights"),
    [
        (0.0, (0.0, 0.0, 0.0)),
        (0.1, (0.0, 0.05, 0.0)),
        (0.2, (0.0, 0.1, 0.0)),
        (0.3, (0.0, 0.1, 0.05)),
        (0.5, (0.05, 0.1, 0.1)),
        (0.6, (0.1, 0.1, 0.1)),
        (1.0, (0.1, 0.1, 0.1)),
    ],
)
def test_alignment_grows_from_the_weakest_link(progress: float, weights: tuple[float, ...]) -> None:
    growth = AlignmentGrowth(weight=0.1, grown_at=0.6)
    assert alignment_weights_at(growth, progress, (0.2, 0.9, 0.5)) == pytest.approx(weights, abs=1e-9)


def test_alignment_of_no_links_has_no_weights() -> None:
    assert alignment_weights_at(AlignmentGrowth(), 0.5, ()) == ()


@pytest.mark.parametrize("config", [LearningRateSchedule(), TemperatureSchedule(), DataMix(), AlignmentGrowth()])
def test_defaults_are_sound(config: Any) -> None:
    assert config.problems() == []


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (LearningRateSchedule(peak=0.0), "peak must be above 0, not 0.0"),
        (LearningRateSchedule(warmup_share=1.0), "warmup_share must be from 0 to below 1, not 1.0"),
        (LearningRateSchedule(floor_share=1.5), "floor_share must be from 0 to 1, not 1.5"),
        (TemperatureSchedule(end=0.0), "end must be above 0, not 0.0"),
        (TemperatureSchedule(shape="square"), "shape must be linear or cosine, not 'square'"),  # type: ignore[arg-type]
        (DataMix(task_share=-0.1), "task_share must be from 0 to 1, not -0.1"),
        (DataMix(general_stage=0.7, ramp=0.5), "general_stage and ramp must fit into the run, not take 1.2"),
        (AlignmentGrowth(weight=-1.0), "weight must not be negative, not -1.0"),
        (AlignmentGrowth(grown_at=0.0), "grown_at must be above 0 and at most 1, not 0.0"),
    ],
)
def test_configs_say_what_is_wrong(config: Any, problem: str) -> None:
    assert config.problems() == [problem]
