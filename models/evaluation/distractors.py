"""Wrong numbers to choose from beside the right one, the same ones for the same question."""

import itertools
import re

NUM_WRONG = 3
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def wrong_numbers(question: str, right: str) -> tuple[str, ...]:
    """Three plausible numbers: what the question's own numbers give when they are combined wrongly, then neighbours.

    All have the right one's sign and, where that is an integer, are integers.
    """
    value = float(right)
    mentioned = [float(text.replace(",", "").rstrip(".")) for text in _NUMBER.findall(question)]
    wrong: dict[str, None] = {}
    for candidate in _candidates(mentioned, value):
        text = _written(candidate, value)
        if text != right and (candidate < 0) == (value < 0):
            wrong[text] = None
        if len(wrong) == NUM_WRONG:
            break
    return tuple(wrong)


def _candidates(mentioned: list[float], right: float) -> list[float]:
    found: list[float] = []
    for first, second in itertools.pairwise(mentioned):
        found += [first + second, abs(first - second)]
    step = 1.0 if abs(right) < 20 else 10.0
    found += [number + step for number in mentioned]
    return [*found, right + step, right + 2 * step, right + 3 * step, right - step]


def _written(value: float, like: float) -> str:
    if like == int(like):
        return str(round(value))
    return f"{value:g}"
