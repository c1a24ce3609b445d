"""The 7 : 3 mix."""

from collections import Counter
from dataclasses import dataclass

import pytest

from models.distill.data.mixture import mix
from models.errors import ConfigError


@dataclass(frozen=True)
class Item:
    task: str
    number: int
    size: int = 1


def items(**counts: int) -> list[Item]:
    return [Item(task, number) for task, count in counts.items() for number in range(count)]


def counts(chosen: list[Item]) -> dict[str, int]:
    return dict(Counter(item.task for item in chosen))


def test_mix_is_seven_to_three_with_equal_tasks() -> None:
    chosen = mix(items(math=500, legal=500, general=500), budget=100)
    assert counts(chosen) == {"math": 35, "legal": 35, "general": 30}


def test_mix_takes_its_share_from_the_caller() -> None:
    assert counts(mix(items(math=500, general=500), task_share=0.25, budget=8)) == {"math": 2, "general": 6}


def test_mix_gives_the_part_of_a_small_task_to_the_others() -> None:
    chosen = mix(items(math=500, legal=10, fact=500, general=500), budget=100)
    assert counts(chosen) == {"legal": 10, "math": 30, "fact": 30, "general": 30}


def test_mix_without_budget_is_as_large_as_the_share_allows() -> None:
    assert counts(mix(items(math=500, general=30))) == {"math": 70, "general": 30}
    assert counts(mix(items(math=70, general=500))) == {"math": 70, "general": 30}


def test_mix_keeps_the_share_when_one_side_runs_short_of_the_budget() -> None:
    assert counts(mix(items(math=500, general=30), budget=400)) == {"math": 70, "general": 30}


@pytest.mark.parametrize("task", ["math", "general"])
def test_mix_of_one_side_is_all_of_that_side(task: str) -> None:
    assert counts(mix(items(**{task: 50}), budget=20)) == {task: 20}


@pytest.mark.parametrize(("share", "expected"), [(0.0, {"general": 40}), (1.0, {"math": 50})])
def test_mix_can_be_one_stage_only(share: float, expected: dict[str, int]) -> None:
    assert counts(mix(items(math=50, general=40), task_share=share)) == expected


def test_mix_counts_by_size() -> None:
    both = [Item("math", number, size=10) for number in range(50)] + [Item("general", n, size=1) for n in range(500)]
    assert counts(mix(both, budget=100, size=lambda item: item.size)) == {"math": 7, "general": 30}


def test_mix_repeats_nothing_and_is_shuffled_by_its_seed() -> None:
    both = items(math=50, general=50)
    chosen = mix(both, budget=40, seed=1)
    assert len(set(chosen)) == 40
    assert mix(both, budget=40, seed=1) == chosen
    assert mix(both, budget=40, seed=2) != chosen
    assert [item.task for item in chosen] != sorted(item.task for item in chosen)
    assert {item.number for item in chosen if item.task == "general"} != set(range(12))


def test_mix_of_nothing_is_nothing() -> None:
    assert mix(list[Item]()) == []


def test_mix_refuses_a_share_that_is_none() -> None:
    with pytest.raises(ConfigError, match="task_share = 7"):
        mix(items(math=1), task_share=7)
