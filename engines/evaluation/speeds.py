"""How fast every path decodes: single steps of the runner, paths taking turns."""

import statistics
from collections.abc import Sequence

from engines.contract import DecodeRow, Runner, StepInput
from engines.step_times import step_times
from models.student.manifest import HeadKind

ROW_COUNTS = (1, 32)
POSITION = 128
"""Position of the decoded tokens, which is how many tokens of context attention reads."""
NUM_ROUNDS = 40
NUM_WARM_UPS = 2


def decode_speeds(
    runner: Runner,
    paths: Sequence[str],
    position: int = POSITION,
    num_rounds: int = NUM_ROUNDS,
    *,
    head: HeadKind = "exact",
) -> dict[str, dict[int, float]]:
    """Tokens per second of every path by rows in a step: rows over the median step. Paths take turns, to share noise.

    Whatever the slots hold is overwritten.
    """
    speeds: dict[str, dict[int, float]] = {path: {} for path in paths}
    for num_rows in ROW_COUNTS:
        steps = {path: _step(path, num_rows, position, head) for path in paths}
        for path, seconds in step_times(runner, steps, num_rounds=num_rounds, num_warm_ups=NUM_WARM_UPS).items():
            speeds[path][num_rows] = num_rows / statistics.median(seconds)
    return speeds


def _step(path: str, num_rows: int, position: int, head: HeadKind) -> StepInput:
    return StepInput(decode=(DecodeRow(path=path, position=position, token_id=1, head=head),) * num_rows)
