"""Depths take turns: the same share of the time for each, and none waits for longer than a quantum of the others."""

from collections import Counter

import numpy as np
import pytest

from engines.vllm.turns import DepthTurns


def test_one_depth_has_every_turn() -> None:
    turns = DepthTurns()
    assert [turns.choose({12}) for _ in range(3)] == [12, 12, 12]


@pytest.mark.parametrize("depths", [{10, 30}, {4, 8, 30}, {9, 10}])
def test_depths_share_the_time_equally(depths: set[int]) -> None:
    turns = DepthTurns()
    chosen = Counter(turns.choose(depths) for _ in range(3000))
    times = [depth * chosen[depth] for depth in depths]
    assert max(times) - min(times) <= 2 * max(depths)


def test_a_depth_waits_at_most_a_quantum_of_each_other() -> None:
    depths, turns, waited = {3, 11, 30}, DepthTurns(), Counter[int]()
    for _ in range(2000):
        chosen = turns.choose(depths)
        for depth in depths:
            waited[depth] = 0 if depth == chosen else waited[depth] + chosen
            assert waited[depth] <= (len(depths) - 1) * 2 * max(depths)


def test_a_depth_without_work_keeps_no_credit() -> None:
    turns = DepthTurns()
    for _ in range(5):
        turns.choose({2, 30})
    for _ in range(50):
        turns.choose({30})
    assert sum(turns.choose({2, 30}) == 2 for _ in range(16)) <= 15


def test_a_depth_that_can_do_nothing_lets_the_others_pass() -> None:
    turns = DepthTurns()
    while turns.choose({10, 30}) != 10:
        pass
    turns.give_up(10)  # it has credit for more
    assert turns.choose({10, 30}) == 30


def test_any_change_of_work_leaves_a_depth_that_has_some() -> None:
    random, turns = np.random.default_rng(1), DepthTurns()
    for _ in range(2000):
        depths = set(random.choice([2, 5, 9, 30], random.integers(1, 5), replace=False).tolist())
        assert turns.choose(depths) in depths
