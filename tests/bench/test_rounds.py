"""Rounds: reported as they begin, gathered by figure, medians taken."""

from bench.rounds import count_rounds, gather, medians


def test_rounds_are_reported_when_they_begin() -> None:
    lines: list[str] = []
    seen = [(number, len(lines)) for number in count_rounds(2, lines.append)]
    assert seen == [(0, 1), (1, 2)]
    assert lines == ["round 1 of 2", "round 2 of 2"]


def test_figures_are_gathered_over_rounds_also_when_one_round_lacks_one() -> None:
    assert gather([{"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 5.0, "c": 4.0}]) == {"a": [1, 3, 5], "b": [2], "c": [4]}
    assert gather([]) == {}


def test_medians_are_by_figure() -> None:
    assert medians({"a": [3.0, 1.0, 2.0], "b": [1.0, 2.0]}) == {"a": 2.0, "b": 1.5}
