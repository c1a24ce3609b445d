"""How fast every path decodes: single steps of the runner, all paths in turns."""

import statistics
import time
from collections.abc import Sequence

from engines.contract import DecodeRow, Runner, StepInput

ROW_COUNTS = (1, 32)
POSITION = 128
"""Where the decoded tokens stand: the tokens of context that attention reads."""
NUM_ROUNDS = 40
NUM_WARM_UPS = 2


def decode_speeds(
    runner: Runner, paths: Sequence[str], position: int = POSITION, num_rounds: int = NUM_ROUNDS
) -> dict[str, dict[int, float]]:
    """Tokens per second of every path by rows in a step: rows over the median step, in turns that share the noise.

    Whatever the slots hold is overwritten.
    """
    seconds: dict[tuple[str, int], list[float]] = {}
    for num_rows in ROW_COUNTS:
        steps = {path: _step(path, num_rows, position) for path in paths}
        for turn in range(NUM_WARM_UPS + num_rounds):
            for path, step in steps.items():
                started = time.perf_counter()
                runner.forward(step)
                if turn >= NUM_WARM_UPS:
                    seconds.setdefault((path, num_rows), []).append(time.perf_counter() - started)
    return {
        path: {num_rows: num_rows / statistics.median(seconds[path, num_rows]) for num_rows in ROW_COUNTS}
        for path in paths
    }


def _step(path: str, num_rows: int, position: int) -> StepInput:
    return StepInput(decode=(DecodeRow(path=path, position=position, token_id=1),) * num_rows)
