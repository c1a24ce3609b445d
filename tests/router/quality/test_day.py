"""A day of drifting traffic, simulated: a path that gets worse leaves soon and comes back when it has recovered, and
one at its floor does not come and go.

The parameters are those of the settings; the spread of single answers is that of the default student
(docs/online-quality.md). Time is in seconds, scores come as traffic does: sixteen times as many at noon as at night.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from engines.answer_score import AnswerScore
from router.quality.config import OnlineQualityConfig
from router.quality.controller import Change, Rules, State, decide
from router.quality.live import PathUse
from router.quality.window import Window

CONFIG = OnlineQualityConfig(mode="act")
USE = PathUse("small", "legal", "wide", "cheap")
FLOOR = CONFIG.all_floors["legal"]
SPREAD = 0.17
"""Standard deviation of what single answers keep."""
DAY_S = 86_400.0
NOON_PER_HOUR = 60.0
"""Answers that are scored in an hour at noon: of 3,000 on this path at the default share."""
NOTICED_SAMPLES = 60
"""What docs/online-quality.md promises for a path that falls from 0.10 above its floor to 0.15 below it."""
RECOVERED_SAMPLES = 90
"""The same for its way back, of answers that nobody asked for."""


@dataclass
class Day:
    """`num_below` counts scores of answers that users got while the truth was below the floor, `num_missed` those of a
    path that was out although it was above."""

    changes: list[Change] = field(default_factory=list)
    num_below: int = 0
    num_missed: int = 0
    most_below_s: float = 0.0


def traffic(at_s: float) -> float:
    """Scores per second."""
    return NOON_PER_HOUR / 3600 * (0.53 - 0.47 * math.cos(2 * math.pi * at_s / DAY_S))


def live_through(truth: Callable[[float], float], seed: int, *, days: float = 1.0) -> Day:
    """Scores come one by one; while the path is out, every second one is of an answer that it writes for nobody."""
    rng, day, state, window = np.random.default_rng(seed), Day(), State(), Window()
    rules = Rules(floors=CONFIG.all_floors, min_samples=CONFIG.min_samples, rest_s=CONFIG.rest_s)
    now_s, below_since = 0.0, None
    while now_s < days * DAY_S:
        now_s += rng.exponential(1 / traffic(now_s))
        is_below = truth(now_s) < FLOOR and not state.is_out(USE)
        below_since = (below_since or now_s) if is_below else None
        day.num_below += is_below
        day.most_below_s = max(day.most_below_s, now_s - (below_since or now_s))
        if state.is_out(USE) and rng.random() < 0.5:
            continue
        day.num_missed += state.is_out(USE) and truth(now_s) > FLOOR
        window.add(answer(truth(now_s), rng), now_s)
        figure = window.figure(now_s, CONFIG.half_life_s, CONFIG.half_life_samples)
        assert figure is not None
        state, changes = decide(state, {USE: figure}, rules, now_s)
        day.changes += changes
        if any(change.action == "take_out" for change in changes):
            window = Window()
    return day


def answer(kept: float, rng: np.random.Generator) -> AnswerScore:
    num_tokens = int(rng.integers(16, 129))
    nats = num_tokens * rng.gamma(9.0, 0.6 / 9)
    share = max(0.05, rng.normal(kept, SPREAD))
    return AnswerScore(num_tokens=num_tokens, nats=nats, expected_nats=share * nats)


@pytest.mark.parametrize("seed", range(2))
def test_a_good_path_stays_all_day(seed: int) -> None:
    day = live_through(lambda at_s: FLOOR + 0.09 + 0.04 * math.sin(at_s / 3000), seed)
    assert day.changes == []


@pytest.mark.parametrize("seed", range(2))
def test_a_path_that_breaks_at_noon_leaves_soon_and_comes_back_when_mended(seed: int) -> None:
    broken, mended = DAY_S / 2, DAY_S * 0.75
    day = live_through(lambda at_s: FLOOR - 0.15 if broken <= at_s < mended else FLOOR + 0.10, seed, days=1.75)
    assert [change.action for change in day.changes] == ["take_out", "put_back"]
    out, back = day.changes
    assert day.num_below <= NOTICED_SAMPLES
    assert day.num_missed <= RECOVERED_SAMPLES
    assert day.most_below_s <= NOTICED_SAMPLES * 3600 / NOON_PER_HOUR * 1.5
    assert broken < out.at_s < mended < back.at_s


@pytest.mark.parametrize("seed", range(2))
def test_a_path_that_drifts_down_all_day_leaves_and_stays_out(seed: int) -> None:
    day = live_through(lambda at_s: FLOOR + 0.12 - 0.30 * at_s / DAY_S, seed)
    assert [change.action for change in day.changes] == ["take_out"]
    # How far below its floor it was when it left: what scores of this spread can tell.
    truth_then = FLOOR + 0.12 - 0.30 * day.changes[0].at_s / DAY_S
    assert FLOOR - 0.08 < truth_then < FLOOR + 0.02


@pytest.mark.parametrize("seed", range(2))
def test_a_path_at_its_floor_does_not_come_and_go(seed: int) -> None:
    day = live_through(lambda at_s: FLOOR, seed, days=2.0)
    assert len(day.changes) <= 8
