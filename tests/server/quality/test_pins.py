"""Pins of the settings: for which paths they hold, and which hold for none."""

import pytest

from router.quality.config import OnlineQualityConfig
from router.quality.controller import Pin, Pinned
from server.quality.pins import pin_problems, settled_pins
from tests.server.conftest import make_manifest

MANIFESTS = {"tiny": make_manifest("tiny"), "other": make_manifest("other")}


def test_pin_holds_for_every_student_that_has_the_path() -> None:
    config = OnlineQualityConfig(pins={"legal.shallow": "out", "math.full": "in", "fact.deep": "out"})
    pins = settled_pins(config, MANIFESTS)
    assert pins == {
        pinned: Pin(is_open=pinned.task == "math", by="settings")
        for name in ("tiny", "other")
        for pinned in (Pinned(name, "legal", "shallow"), Pinned(name, "math", "full"))
    }


def test_full_path_is_never_out() -> None:
    assert settled_pins(OnlineQualityConfig(pins={"legal.full": "out"}), MANIFESTS) == {}


@pytest.mark.parametrize(
    ("place", "where", "part"),
    [
        ("legal.shallow", "out", None),
        ("legal.full", "in", None),
        ("legal.full", "out", "online_quality.pins.legal.full: the full path cannot be pinned out"),
        ("legal.deep", "in", "online_quality.pins.legal.deep: no student has a path 'deep'; there are full, shallow"),
    ],
)
def test_pins_that_hold_for_nobody_are_named(place: str, where: str, part: str | None) -> None:
    config = OnlineQualityConfig(pins={place: where})  # type: ignore[dict-item]
    found = [str(problem) for problem in pin_problems(config, MANIFESTS)]
    assert len(found) == (0 if part is None else 1)
    assert all((part or "") in said for said in found)
