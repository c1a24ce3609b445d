"""Whose soft targets count: all teachers', or those of the one that the switch chose."""

from typing import Any, cast

import pytest

from models.distill.config import DistillConfig, config_from
from models.distill.loss.objective import Teacher
from models.distill.run.teacher_choice import OWN, TeacherChoice
from models.errors import ConfigError

OURS, LARGE = cast(Teacher, "ours"), cast(Teacher, "large")


def config_of(**values: Any) -> DistillConfig:
    return config_from({"teacher": "a", "data": "b", "out": "c", **values}, "test")


def switched() -> TeacherChoice:
    return TeacherChoice(config_of(training={"switch_steps": 4}), OURS, {"large": LARGE})


@pytest.mark.parametrize("ensemble", ["switch", "mean"])
def test_a_teacher_alone_is_the_choice(ensemble: str) -> None:
    choice = TeacherChoice(config_of(ensemble=ensemble), OURS, {})
    assert (choice.current(), choice.name, choice.is_due(0)) == ([OURS], OWN, False)
    assert choice.state_dict() is None


def test_the_mean_counts_every_teacher() -> None:
    choice = TeacherChoice(config_of(ensemble="mean"), OURS, {"large": LARGE})
    assert (choice.current(), choice.name, choice.is_due(0)) == ([OURS, LARGE], OWN, False)


def test_the_switch_gives_one_teacher_and_is_asked_now_and_then() -> None:
    choice = switched()
    assert [step for step in range(9) if choice.is_due(step)] == [0, 4, 8]
    assert (choice.current(), choice.name) == ([OURS], OWN)
    choice.observe({OWN: 2.0, "large": 0.5})
    assert (choice.current(), choice.name) == ([LARGE], "large")


def test_the_choice_goes_on_after_a_resume() -> None:
    choice, resumed = switched(), switched()
    choice.observe({OWN: 2.0, "large": 0.5})
    resumed.load_state_dict(choice.state_dict())
    assert resumed.current() == [LARGE]
    with pytest.raises(ConfigError, match="names teachers large"):
        TeacherChoice(config_of(), OURS, {"other": LARGE}).load_state_dict(choice.state_dict())
