"""What every bench does with rounds: reports each as it begins, gathers figures, takes medians."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

RoundFigures = dict[str, list[float]]
"""A figure's value in every round that has it."""


def count_rounds(num_rounds: int, report: Callable[[str], None]) -> Iterator[int]:
    """Numbers from 0; each round is reported when it begins."""
    for number in range(num_rounds):
        report(f"round {number + 1} of {num_rounds}")
        yield number


def gather(rounds: Sequence[Mapping[str, float]]) -> RoundFigures:
    """From the figures of each round to the rounds of each figure."""
    names = dict.fromkeys(name for one in rounds for name in one)
    return {name: [one[name] for one in rounds if name in one] for name in names}


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in found.items()}
