"""How long steps of a runner take, measured side by side."""

import time
from collections.abc import Hashable, Mapping
from typing import TypeVar

from engines.contract import Runner, StepInput

K = TypeVar("K", bound=Hashable)


def step_times(
    runner: Runner, steps: Mapping[K, StepInput], *, num_rounds: int, num_warm_ups: int = 0
) -> dict[K, list[float]]:
    """Seconds of every step in every round, warm-ups left out. Steps take turns, so that noise falls on all of them.

    Whatever the slots hold is overwritten.
    """
    seconds: dict[K, list[float]] = {name: [] for name in steps}
    for turn in range(num_warm_ups + num_rounds):
        for name, step in steps.items():
            started_s = time.perf_counter()
            runner.forward(step)
            if turn >= num_warm_ups:
                seconds[name].append(time.perf_counter() - started_s)
    return seconds
