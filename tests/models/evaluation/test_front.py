"""The front and the picks on points laid out by hand."""

import pytest

from models.errors import ConfigError
from models.evaluation.front import front, pick
from models.evaluation.table import Point, TaskRetention


def point(path: str, kept: dict[str, float], *, share: float = 1.0, speed: float = 1.0, size: int = 1) -> Point:
    retention = {
        task: TaskRetention(task=task, score=score, low=score, high=score, measures=()) for task, score in kept.items()
    }
    return Point(
        path=path,
        precision="fp32",
        layers=1,
        compute_share=share,
        compute_share_with_attention=share,
        agreement=1.0,
        kl=0.0,
        perplexity_ratio=1.0,
        tasks={},
        retention={},
        reference_retention=retention,
        measures=(),
        bytes=size,
        decode_tokens_per_s={1: speed, 32: 100 - speed},
    )


SHALLOW = point("shallow", {"math": 0.99, "fact": 0.91}, share=0.4, speed=30.0, size=10)
MIDDLE = point("middle", {"math": 0.96, "fact": 0.97}, share=0.6, speed=20.0, size=20)
FULL = point("full", {"math": 1.0, "fact": 1.0}, share=1.0, speed=10.0, size=30)


def test_the_front_has_no_point_that_another_beats_in_both() -> None:
    beaten = point("beaten", {"math": 0.9, "fact": 0.9}, share=0.7)
    assert [one.path for one in front([FULL, beaten, MIDDLE, SHALLOW])] == ["shallow", "middle", "full"]


@pytest.mark.parametrize(("scenario", "path"), [("interactive", "middle"), ("offline", "full"), ("edge", "shallow")])
def test_pick_goes_by_the_weakest_task_and_the_scenarios_cost(scenario: str, path: str) -> None:
    choice = pick([FULL, MIDDLE, SHALLOW], scenario)
    assert (choice.point.path, choice.is_fallback) == (path, False)


def test_pick_falls_back_to_what_keeps_most_and_says_so() -> None:
    choice = pick([SHALLOW, MIDDLE], "offline")
    assert choice.point is MIDDLE
    assert choice.is_fallback
    assert "none keeps 98%" in choice.reason


def test_pick_knows_its_scenarios() -> None:
    with pytest.raises(ConfigError, match="interactive, offline, edge"):
        pick([FULL], "batch")
    with pytest.raises(ConfigError, match="fenhe eval"):
        pick([], "edge")


def test_pick_takes_the_deepest_when_nothing_is_known_of_any_task() -> None:
    """Not the fastest, of which as little is known."""
    unknown = [point(name, {}, share=share, speed=speed) for name, share, speed in (("a", 0.4, 9.0), ("b", 1.0, 2.0))]
    choice = pick(unknown, "interactive")
    assert (choice.point.path, choice.is_fallback) == ("b", True)
    assert "could not be measured" in choice.reason
