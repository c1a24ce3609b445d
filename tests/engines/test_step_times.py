"""Steps are timed in turns, and warm-ups do not count."""

from typing import Any, cast

from engines.contract import DecodeRow, Runner, StepInput
from engines.step_times import step_times


class Recorder:
    """A runner that only notes which paths ran."""

    def __init__(self) -> None:
        self.paths: list[str | None] = []

    def forward(self, step: StepInput) -> Any:
        self.paths.append(step.decode[0].path)


def step(path: str) -> StepInput:
    return StepInput(decode=(DecodeRow(path=path, position=0, token_id=1),))


def test_step_times_take_turns_and_leave_warm_ups_out() -> None:
    recorder = Recorder()
    times = step_times(cast("Runner", recorder), {1: step("a"), 2: step("b")}, num_rounds=3, num_warm_ups=1)
    assert recorder.paths == ["a", "b"] * 4
    assert {name: len(values) for name, values in times.items()} == {1: 3, 2: 3}
    assert all(seconds >= 0 for values in times.values() for seconds in values)
