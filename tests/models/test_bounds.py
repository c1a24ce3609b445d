"""Bounds: found in a field's type, put into words, and enforced."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from msgspec import Meta

from models.bounds import Bounds, Positive, Seconds, Share, find_bounds, out_of_bounds


@dataclass(frozen=True, kw_only=True)
class Config:
    name: Annotated[str, Meta(min_length=1)] = ""
    size: Annotated[Positive, Meta(description="how large")] = 1
    pause_s: Annotated[Seconds | None, Meta(description="how long")] = None
    shares: dict[str, Share] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Positive, "at least 1"),
        (Annotated[Seconds | None, Meta(description="x")], "more than 0"),
        (dict[str, Share], "from 0 to 1"),
        (Annotated[int, Meta(ge=1, le=315_360_000)], "from 1 to 315360000"),
        (Annotated[int, Meta(le=65535)], "at most 65535"),
    ],
)
def test_bounds_are_told_in_words(hint: Any, words: str) -> None:
    assert str(find_bounds(hint)) == words


@pytest.mark.parametrize("hint", [int, str, float | None, Annotated[str, Meta(pattern="x")], dict[str, int]])
def test_bounds_of_other_types_are_none(hint: Any) -> None:
    assert find_bounds(hint) is None


def test_bounds_may_be_reached_unless_they_are_open() -> None:
    assert Bounds(least=1).has(1)
    assert not Bounds(above=0).has(0)
    assert Bounds(least=0, most=1).has(1)
    assert not Bounds(least=0, most=1).has(float("nan"))


def test_values_made_in_code_are_held_to_the_bounds_of_their_fields() -> None:
    assert out_of_bounds(Config()) == []
    wrong = Config(size=0, pause_s=0.0, shares={"a": 0.5, "b": float("nan")})
    assert [problem.setting for problem in out_of_bounds(wrong)] == ["size", "pause_s", "shares.b"]
    assert [problem.said for problem in out_of_bounds(wrong)] == [
        "size must be at least 1, not 0",
        "pause_s must be more than 0, not 0.0",
        "shares.b must be from 0 to 1, not nan",
    ]
