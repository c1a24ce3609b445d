"""What adapts weights observes the right figures, also when not every exit takes part in a step."""

import json
from typing import Any

import pytest

from models.distill.config import DistillConfig, config_from
from models.distill.steering.adaptive_weights import AdaptiveWeights
from models.distill.steering.schedules import Stage

BOTH = Stage(name="both", share=1.0, weights={"soft_target_kl": 0.6, "task_cross_entropy": 0.2})
ONE_WINDOW: dict[str, Any] = {"window_steps": 1, "smoothing": 0.0, "floor": 0.0}


def config_of(**values: Any) -> DistillConfig:
    return config_from({"teacher": "a", "data": "b", "out": "c", **values}, "test")


def averaging() -> AdaptiveWeights:
    return AdaptiveWeights(config_of(weighting="dynamic_average", dynamic_average=ONE_WINDOW), ["a", "b"])


def terms(kl: float, loss: float, passes: int = 1) -> dict[str, float]:
    return {"loss": 1.0, "passes": passes, "soft_target_kl": kl * passes, "task_cross_entropy": loss * passes}


def test_fixed_weights_stay() -> None:
    adaptive = AdaptiveWeights(config_of(), ["a", "b"])
    adaptive.observe(BOTH, {"a": terms(1, 2)}, {"a": 3.0}, 100)
    assert adaptive.weights(BOTH) == ({"soft_target_kl": 0.6, "task_cross_entropy": 0.2}, None)
    assert adaptive.module_weight("a") == 1.0


def test_dynamic_average_gives_the_slower_term_more() -> None:
    adaptive = averaging()
    for kl in (4.0, 2.0):
        # Two exits, whose mean counts, one of them by the mean of its passes.
        adaptive.observe(BOTH, {"a": terms(kl - 1, 3.0, passes=4), "b": terms(kl + 1, 3.0)}, {}, 0)
    weights, temperature = adaptive.weights(BOTH)
    # Ratios 1/2 and 1, at temperature 2: shares e^-0.25 and 1, times two terms.
    assert weights["soft_target_kl"] == pytest.approx(0.6 * 2 * 0.437823, rel=1e-5)
    assert weights["task_cross_entropy"] == pytest.approx(0.2 * 2 * 0.562177, rel=1e-5)
    assert temperature is None


def test_dynamic_average_passes_over_exits_with_losses_of_their_own() -> None:
    adaptive, other = averaging(), averaging()
    own = {"loss": 9.0, "passes": 1.0, "hidden_mse": 9.0}
    for kl in (4.0, 2.0):
        adaptive.observe(BOTH, {"a": terms(kl, 3.0), "b": own}, {}, 0)
        other.observe(BOTH, {"a": terms(kl, 3.0)}, {}, 0)
    adaptive.observe(BOTH, {"b": own}, {}, 0)
    assert adaptive.weights(BOTH) == other.weights(BOTH)


def test_dynamic_average_leaves_terms_of_no_weight_alone() -> None:
    adaptive = averaging()
    stage = Stage(name="one", share=1.0, weights={"soft_target_kl": 1.0, "task_cross_entropy": 0.0})
    adaptive.observe(stage, {"a": {"loss": 1.0, "passes": 1.0, "soft_target_kl": 1.0}}, {}, 0)
    assert adaptive.weights(stage)[0] == {"soft_target_kl": 1.0}


def test_stages_are_averaged_apart() -> None:
    adaptive, later = averaging(), Stage(name="later", share=1.0, weights=BOTH.weights)
    for kl in (4.0, 2.0):
        adaptive.observe(BOTH, {"a": terms(kl, 3.0)}, {}, 0)
    assert adaptive.weights(later)[0] == dict(BOTH.weights)
    assert adaptive.weights(BOTH)[0] != dict(BOTH.weights)


def test_the_guide_waits_until_every_exit_had_a_gradient() -> None:
    guided = config_of(weighting="gradient_guided", gradient_guided={"warmup_steps": 2, "smoothing": 0.5})
    adaptive = AdaptiveWeights(guided, ["math", "fact"])
    for norm in (1.0, 9.0, 1.0, 9.0):
        adaptive.observe(BOTH, {"math": terms(1, 1)}, {"math": norm}, 0)
        adaptive.observe(BOTH, {"fact": terms(1, 1)}, {"fact": 5.0}, 0)
    assert adaptive.state_dict()["guide"]["num_steps"] == 4
    assert adaptive.module_weight("math") == 2.0
    assert adaptive.module_weight("fact") == 0.5


def test_the_controller_shares_out_soft_and_hard_and_sets_the_temperature() -> None:
    adaptive = AdaptiveWeights(config_of(weighting="controller"), ["a"])
    weights, temperature = adaptive.weights(BOTH)
    assert weights["soft_target_kl"] + weights["task_cross_entropy"] == pytest.approx(0.8)
    assert temperature is not None
    assert temperature > 0
    alone = Stage(name="alone", share=1.0, weights={"hidden_mse": 1.0})
    assert adaptive.weights(alone)[0] == {"hidden_mse": 1.0}


def test_the_controller_does_not_hear_the_square_of_the_temperature() -> None:
    one, other = (AdaptiveWeights(config_of(weighting="controller"), ["a"]) for _ in range(2))
    one.observe(BOTH, {"a": terms(4.0 * 9, 1.0)}, {}, 100, temperature=3.0)
    other.observe(BOTH, {"a": terms(4.0, 1.0)}, {}, 100)
    assert one.state_dict() == other.state_dict()


def test_a_step_in_which_no_exit_learned_says_nothing() -> None:
    adaptive = averaging()
    before = adaptive.state_dict()
    adaptive.observe(BOTH, {"a": {}, "b": {}}, {}, 500)
    assert adaptive.state_dict() == before


@pytest.mark.parametrize(
    "values",
    [
        {"weighting": "dynamic_average", "dynamic_average": ONE_WINDOW},
        {"weighting": "gradient_guided", "gradient_guided": {"warmup_steps": 1, "smoothing": 0.5}},
        {"weighting": "controller", "controller": {"window_tokens": 100}},
    ],
    ids=lambda values: values["weighting"],
)
def test_a_state_that_was_saved_goes_on_like_the_one_that_ran_through(values: dict[str, Any]) -> None:
    stage = {"name": BOTH.name, "share": BOTH.share, "weights": BOTH.weights}
    config = config_of(stages=[stage], **values)
    through, resumed = AdaptiveWeights(config, ["a", "b"]), AdaptiveWeights(config, ["a", "b"])

    def step(adaptive: AdaptiveWeights, index: int) -> None:
        name, norm = "ab"[index % 2], 1.0 + index**2
        adaptive.observe(BOTH, {name: terms(5.0 / (index + 1), 3.0)}, {name: norm}, 90 * (index + 1))

    for index in range(5):
        step(through, index)
    resumed.load_state_dict(json.loads(json.dumps(through.state_dict())))
    for index in range(5, 9):
        step(through, index)
        step(resumed, index)
    assert resumed.state_dict() == through.state_dict()
    assert resumed.weights(BOTH) == through.weights(BOTH)
    assert resumed.module_weight("a") == through.module_weight("a")
