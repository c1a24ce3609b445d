"""The mix of the training data: 7 parts task to 3 parts general, the tasks in equal parts. No torch."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from models.errors import ConfigError

GENERAL = "general"


class _HasTask(Protocol):
    @property
    def task(self) -> str: ...


T = TypeVar("T", bound=_HasTask)


def _one(_: object) -> int:
    return 1


def mix(
    items: Sequence[T],
    *,
    task_share: float = 0.7,
    budget: float | None = None,
    size: Callable[[T], int] = _one,
    seed: int = 0,
) -> list[T]:
    """Items of which `task_share` are task items, the tasks in equal parts, and the rest `general`; shuffled.

    A task with too little leaves its part to the other tasks. The share is kept and nothing is repeated, so the result
    is below `budget` (in units of `size`; None: as much as there is) when one side runs short. With only one side
    present there is nothing to mix: all of `budget` is of that side.

    Raises: ConfigError for a share outside 0 to 1.
    """
    if not 0.0 <= task_share <= 1.0:
        raise ConfigError(f"task_share = {task_share} is not a share; give one from 0 to 1, such as 0.7")
    groups = _shuffled_groups(items, seed)
    supply = {task: sum(map(size, members)) for task, members in groups.items()}
    taken = quotas(supply, task_share, budget)
    chosen = [item for task, members in groups.items() for item in _up_to(members, taken[task], size)]
    random.Random(f"{seed}/mix").shuffle(chosen)
    return chosen


def _shuffled_groups(items: Sequence[T], seed: int) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(item.task, []).append(item)
    for task in sorted(groups):
        random.Random(f"{seed}/{task}").shuffle(groups[task])
    return {task: groups[task] for task in sorted(groups)}


def quotas(supply: Mapping[str, int], task_share: float, budget: float | None) -> dict[str, float]:
    """How much `mix` takes of every task, given how much there is of each."""
    tasks = {task: available for task, available in supply.items() if task != GENERAL}
    sides = (sum(tasks.values()), supply.get(GENERAL, 0))
    shares = (task_share, 1.0 - task_share) if all(sides) else (float(bool(sides[0])), float(bool(sides[1])))
    limits = [side / share for side, share in zip(sides, shares, strict=True) if share > 0.0]
    total = min([*limits, *([] if budget is None else [budget])], default=0.0)
    return _equal_parts(tasks, total * shares[0]) | {GENERAL: total * shares[1]}


def _equal_parts(supply: Mapping[str, int], total: float) -> dict[str, float]:
    """Split `total` equally; what a task does not have goes to the tasks that have more."""
    parts: dict[str, float] = {}
    for done, task in enumerate(sorted(supply, key=lambda task: supply[task])):
        parts[task] = min(supply[task], (total - sum(parts.values())) / (len(supply) - done))
    return parts


def _up_to(items: Sequence[T], quota: float, size: Callable[[T], int]) -> Iterator[T]:
    total = 0
    for item in items:
        total += size(item)
        if total > quota + 1e-6:  # quotas are sums of shares: 0.7 * 10 / 2 may come out slightly below its value
            return
        yield item
