"""The Pareto front of quality against cost, and which of its points suits a scenario."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from models.errors import ConfigError
from models.evaluation.table import Point

Scenario = Literal["interactive", "offline", "edge"]
Cost = Callable[[Point], float]


@dataclass(slots=True, kw_only=True, frozen=True)
class Rule:
    """Choose, among the points that keep at least `least_kept` of every task, the one with the least `cost`."""

    least_kept: float
    cost: Cost
    goal: str


def stream_cost(point: Point) -> float:
    """Seconds per token of one stream."""
    return 1 / point.decode_tokens_per_s[1]


def batch_cost(point: Point) -> float:
    """Seconds per token at 32 rows."""
    return 1 / point.decode_tokens_per_s[32]


def size_cost(point: Point) -> float:
    return float(point.bytes)


RULES: dict[str, Rule] = {
    "interactive": Rule(least_kept=0.95, cost=stream_cost, goal="the fastest for one stream"),
    "offline": Rule(least_kept=0.98, cost=batch_cost, goal="the fastest at 32 rows"),
    "edge": Rule(least_kept=0.90, cost=size_cost, goal="the smallest"),
}


@dataclass(slots=True, kw_only=True, frozen=True)
class Pick:
    """A point and, in a sentence, why. `is_fallback`: none met the scenario's rule."""

    point: Point
    reason: str
    is_fallback: bool


def pick(points: Sequence[Point], scenario: str) -> Pick:
    """The point for a scenario, by `RULES`; where none keeps enough, the one that keeps most, else the deepest.

    What is kept is the lowest of any task against the full path at the reference precision, so that points of
    different precisions compare. Raises: ConfigError for an unknown scenario, or when there is no point.
    """
    if scenario not in RULES:
        raise ConfigError(f"there is no scenario {scenario!r}, only {', '.join(get_args(Scenario))}")
    if not points:
        raise ConfigError("there is nothing to pick from; measure the student with `fenhe eval`")
    rule = RULES[scenario]
    if not any(point.reference_retention for point in points):
        return _deepest(points, rule)
    able = [point for point in points if point.least_kept >= rule.least_kept]
    if able:
        best = min(able, key=rule.cost)
        kept = f"of those that keep {rule.least_kept:.0%} of every measured task ({best.least_kept:.1%} here)"
        return Pick(point=best, reason=f"{rule.goal} {kept}", is_fallback=False)
    best = max(points, key=lambda point: (point.least_kept, -rule.cost(point)))
    reason = f"none keeps {rule.least_kept:.0%} of every measured task; this keeps most, {best.least_kept:.1%}"
    return Pick(point=best, reason=reason, is_fallback=True)


def _deepest(points: Sequence[Point], rule: Rule) -> Pick:
    best = max(points, key=lambda point: (point.compute_share, -rule.cost(point)))
    reason = f"what is kept of any task could not be measured; of the deepest, {rule.goal}"
    return Pick(point=best, reason=reason, is_fallback=True)


def front(points: Sequence[Point], cost: Cost = lambda point: point.compute_share) -> list[Point]:
    """The points that no other beats in both mean quality and cost, cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (cost(point), -point.mean_kept)):
        if not found or point.mean_kept > found[-1].mean_kept:
            found.append(point)
    return found
