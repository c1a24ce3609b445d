"""Which of several teachers teaches, and the mean of several."""

import json
from typing import Any

import pytest
import torch

from models.distill.teacher.switch import TeacherSwitch, TeacherSwitchConfig, ensemble_logits
from models.errors import ConfigError

TEACHERS = ("small", "middle", "large")
AT_ONCE = TeacherSwitchConfig(mastered_below=0.2, margin=0.1, smoothing=0.0)


def _switch(config: TeacherSwitchConfig = AT_ONCE) -> TeacherSwitch:
    return TeacherSwitch(TEACHERS, config)


def test_switch_begins_with_the_first_teacher() -> None:
    assert _switch().current == "small"
    assert _switch().observe({}) == "small"


def test_switch_takes_the_nearest_that_is_not_mastered() -> None:
    switch = _switch()
    assert switch.observe({"small": 0.5, "middle": 0.9, "large": 1.5}) == "small"
    assert switch.observe({"small": 0.19, "middle": 0.5, "large": 0.8}) == "middle"
    assert switch.observe({"small": 0.15, "middle": 0.1, "large": 0.4}) == "large"
    assert switch.current == "large"


def test_switch_takes_the_farthest_when_all_are_mastered() -> None:
    assert _switch().observe({"small": 0.05, "middle": 0.15, "large": 0.1}) == "middle"


def test_switch_keeps_its_teacher_unless_another_is_clearly_nearer() -> None:
    switch = _switch()
    assert switch.observe({"small": 1.0, "middle": 0.95, "large": 2.0}) == "small"
    assert switch.observe({"middle": 0.85}) == "middle"
    assert switch.observe({"small": 0.8}) == "middle"


def test_switch_ignores_teachers_that_were_never_measured() -> None:
    switch = _switch()
    assert switch.observe({"small": 0.1}) == "small"
    assert switch.observe({"large": 3.0}) == "large"


def test_switch_smooths_what_it_measures() -> None:
    switch = _switch(TeacherSwitchConfig(mastered_below=0.2, smoothing=0.5))
    switch.observe({"small": 0.5, "middle": 1.0})
    # Half of 0.5 and half of 0.02 are 0.26; the next time 0.14.
    assert switch.observe({"small": 0.02}) == "small"
    assert switch.observe({"small": 0.02}) == "middle"


def test_resume_equals_uninterrupted() -> None:
    config = TeacherSwitchConfig(smoothing=0.5)
    steps: list[dict[str, float]] = [
        {"small": 0.5, "middle": 1.0, "large": 2.0},
        {"small": 0.02},
        {"small": 0.02},
        {"middle": 0.01},
        {"middle": 0.01, "large": 0.7},
        {"middle": 0.01},
    ]
    through = _switch(config)
    expected = [through.observe(step) for step in steps]
    assert len(set(expected)) == 3
    for stop in range(len(steps)):
        first, resumed = _switch(config), _switch(config)
        found = [first.observe(step) for step in steps[:stop]]
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert found + [resumed.observe(step) for step in steps[stop:]] == expected


def test_load_refuses_teachers_that_the_config_does_not_name() -> None:
    state = TeacherSwitch(("huge",), AT_ONCE).state_dict()
    with pytest.raises(ConfigError, match="names teachers huge"):
        _switch().load_state_dict(state)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"mastered_below": -1.0}, "mastered_below must not be negative, not -1.0"),
        ({"margin": 1.0}, "margin must be from 0 to below 1, not 1.0"),
        ({"smoothing": -0.5}, "smoothing must be from 0 to below 1, not -0.5"),
    ],
)
def test_config_says_what_is_wrong(values: dict[str, Any], problem: str) -> None:
    assert TeacherSwitchConfig().problems() == []
    assert TeacherSwitchConfig(**values).problems() == [problem]


def test_ensemble_is_the_mean_of_probabilities() -> None:
    first, second = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log() + 3
    even = ensemble_logits([first, second])
    assert even.softmax(dim=-1)[0].tolist() == pytest.approx([0.375, 0.375, 0.25])
    weighted = ensemble_logits([first, second], [3.0, 1.0])
    assert weighted.softmax(dim=-1)[0].tolist() == pytest.approx([0.4375, 0.4375, 0.125])


def test_ensemble_of_one_teacher_is_that_teacher() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    torch.testing.assert_close(ensemble_logits([logits]).softmax(dim=-1), logits.softmax(dim=-1))
