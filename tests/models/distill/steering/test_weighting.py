"""Weights by pace and by gradients: hand-worked cases, bounds, and that a resume goes on as if nothing had been."""

import json
import random
from typing import Any

import pytest

from models.distill.steering.weighting import (
    DynamicWeightAverage,
    GradientGuideConfig,
    GradientGuided,
    WeightAverageConfig,
)
from models.errors import ConfigError

PLAIN = WeightAverageConfig(window_steps=1, smoothing=0.0, floor=0.0)


def test_dynamic_weights_begin_even() -> None:
    weights = DynamicWeightAverage(("kd", "task"), PLAIN)
    assert weights.weights == {"kd": 1.0, "task": 1.0}
    weights.observe({"kd": 5.0, "task": 1.0})
    assert weights.weights == {"kd": 1.0, "task": 1.0}


def test_dynamic_weights_favour_the_term_that_falls_more_slowly() -> None:
    weights = DynamicWeightAverage(("kd", "task"), PLAIN)
    weights.observe({"kd": 4.0, "task": 1.0})
    weights.observe({"kd": 2.0, "task": 1.0})
    # Ratios 0.5 and 1 at temperature 2: 2 exp(0.25) / (exp(0.25) + exp(0.5)) = 2 / (1 + exp(0.25)).
    assert weights.weights == pytest.approx({"kd": 0.875647, "task": 1.124353}, abs=1e-6)


def test_dynamic_weights_look_at_means_of_windows() -> None:
    weights = DynamicWeightAverage(("kd", "task"), WeightAverageConfig(window_steps=2, smoothing=0.0, floor=0.0))
    for kd in (1.0, 7.0, 3.0):
        weights.observe({"kd": kd, "task": 1.0})
        assert weights.weights == {"kd": 1.0, "task": 1.0}
    weights.observe({"kd": 1.0, "task": 1.0})
    assert weights.weights == pytest.approx({"kd": 0.875647, "task": 1.124353}, abs=1e-6)


def test_dynamic_weights_smooth_the_losses() -> None:
    weights = DynamicWeightAverage(("kd", "task"), WeightAverageConfig(window_steps=1, smoothing=0.5, floor=0.0))
    weights.observe({"kd": 4.0, "task": 1.0})
    weights.observe({"kd": 0.0, "task": 1.0})
    # Half of 4 and half of 0 are 2: again a ratio of 0.5.
    assert weights.weights == pytest.approx({"kd": 0.875647, "task": 1.124353}, abs=1e-6)


def test_dynamic_weights_keep_a_floor_and_their_sum() -> None:
    weights = DynamicWeightAverage(
        ("kd", "task", "hidden"), WeightAverageConfig(window_steps=1, smoothing=0.0, floor=0.2, temperature=0.01)
    )
    weights.observe({"kd": 1.0, "task": 1.0, "hidden": 1.0})
    weights.observe({"kd": 9.0, "task": 0.1, "hidden": 0.1})
    assert weights.weights == pytest.approx({"kd": 2.6, "task": 0.2, "hidden": 0.2})


def test_dynamic_weights_survive_a_loss_that_reached_zero() -> None:
    weights = DynamicWeightAverage(("kd", "task"), PLAIN)
    for _ in range(3):
        weights.observe({"kd": 0.0, "task": 1.0})
    assert weights.weights == {"kd": 1.0, "task": 1.0}


def test_gradient_guide_waits_and_then_favours_the_unstable_module() -> None:
    guide = GradientGuided(
        ("steady", "unstable"), GradientGuideConfig(smoothing=0.5, warmup_steps=2, lowest=0.1, highest=3.0)
    )
    guide.observe({"steady": 100.0, "unstable": 1.0})
    assert guide.weights == {"steady": 1.0, "unstable": 1.0}
    guide.observe({"steady": 140.0, "unstable": 3.0})
    # Means 120 and 2, deviations 20 and 1: instability 1/6 and 1/2, on average 1/3.
    assert guide.weights == pytest.approx({"steady": 0.5, "unstable": 1.5})


def test_gradient_guide_follows_the_moving_mean_and_variance() -> None:
    guide = GradientGuided(("a", "b"), GradientGuideConfig(smoothing=0.5, warmup_steps=1, lowest=0.001, highest=1000.0))
    for a, b in ((1.0, 2.0), (3.0, 2.0), (2.0, 4.0)):
        guide.observe({"a": a, "b": b})
    # a: mean 2, variance 1 after two steps, then 2 and 1/2; b: mean 3, variance 1.
    first, second = 0.5**0.5 / 2, 1 / 3
    average = (first + second) / 2
    assert guide.weights == pytest.approx({"a": first / average, "b": second / average})


@pytest.mark.parametrize(("strength", "weights"), [(0.0, (1.0, 1.0)), (1.0, (0.8, 1.5)), (0.5, (0.8, 1.33))])
def test_gradient_guide_stays_within_bounds(strength: float, weights: tuple[float, float]) -> None:
    guide = GradientGuided(
        ("steady", "unstable"), GradientGuideConfig(strength=strength, warmup_steps=1, lowest=0.8, highest=1.5)
    )
    for unstable in (1.0, 50.0) * 20:
        guide.observe({"steady": 5.0 + 0.02 * unstable, "unstable": unstable})
    assert tuple(guide.weights.values()) == pytest.approx(weights, abs=0.05)


def test_gradient_guide_of_constant_norms_is_even() -> None:
    guide = GradientGuided(("a", "b"), GradientGuideConfig(warmup_steps=1))
    for _ in range(5):
        guide.observe({"a": 3.0, "b": 0.0})
    assert guide.weights == {"a": 1.0, "b": 1.0}


def _average() -> DynamicWeightAverage:
    return DynamicWeightAverage(("kd", "task"), WeightAverageConfig(window_steps=3))


def _guide() -> GradientGuided:
    return GradientGuided(("kd", "task"), GradientGuideConfig(warmup_steps=5))


@pytest.mark.parametrize("make", [_average, _guide])
@pytest.mark.parametrize("stop", [0, 1, 4, 11])
def test_resume_equals_uninterrupted(make: Any, stop: int) -> None:
    draw = random.Random(0)
    steps = [{"kd": draw.uniform(1, 3), "task": draw.uniform(2, 3)} for _ in range(20)]
    through, first, resumed = make(), make(), make()
    for step in steps:
        through.observe(step)
    for step in steps[:stop]:
        first.observe(step)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in steps[stop:]:
        resumed.observe(step)
    assert resumed.weights == through.weights
    assert resumed.weights != make().weights


@pytest.mark.parametrize("make", [_average, _guide])
def test_state_dict_is_a_copy(make: Any) -> None:
    weighting = make()
    state = weighting.state_dict()
    before = json.dumps(state)
    weighting.observe({"kd": 1.0, "task": 2.0})
    assert json.dumps(state) == before


def test_load_refuses_the_state_of_others() -> None:
    state = DynamicWeightAverage(("kd", "hidden"), PLAIN).state_dict()
    with pytest.raises(ConfigError, match="loss terms hidden, kd, the config has kd, task"):
        _average().load_state_dict(state)
    state = GradientGuided(("knowledge",), GradientGuideConfig()).state_dict()
    with pytest.raises(ConfigError, match="modules knowledge, the config has kd, task"):
        _guide().load_state_dict(state)
    with pytest.raises(ConfigError, match="cannot be read"):
        _guide().load_state_dict({"means": "none"})


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (WeightAverageConfig(window_steps=0), "window_steps must be at least 1, not 0"),
        (WeightAverageConfig(temperature=0.0), "temperature must be above 0, not 0.0"),
        (WeightAverageConfig(floor=1.1), "floor must be from 0 to 1, not 1.1"),
        (WeightAverageConfig(smoothing=1.0), "smoothing must be from 0 to below 1, not 1.0"),
        (GradientGuideConfig(strength=-1.0), "strength must not be negative, not -1.0"),
        (GradientGuideConfig(warmup_steps=0), "warmup_steps must be at least 1, not 0"),
        (GradientGuideConfig(lowest=1.5), "lowest and highest must be above 0 and include 1, not 1.5, 2.0"),
    ],
)
def test_configs_say_what_is_wrong(config: Any, problem: str) -> None:
    assert config.problems() == [problem]
    assert type(config)().problems() == []
