"""How long it takes until a process that ended is started again."""

from engines.vllm.restarts import FIRST_S, LASTING_S, LONGEST_S, Restarts


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_waits_double_up_to_a_bound() -> None:
    clock = Clock()
    restarts = Restarts(clock)
    assert restarts.is_due
    waits = []
    for _ in range(10):
        restarts.note_end()
        waits.append(restarts.wait_s)
        assert not restarts.is_due
        clock.now_s += restarts.wait_s
        assert restarts.is_due
    assert waits[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert waits[-1] == LONGEST_S
    assert restarts.num_ended == 10


def test_a_process_that_lasted_is_started_soon_again() -> None:
    clock = Clock()
    restarts = Restarts(clock)
    for _ in range(5):
        restarts.note_end()
    clock.now_s += LONGEST_S
    restarts.note_serving()
    clock.now_s += LASTING_S
    restarts.note_end()
    assert restarts.wait_s == FIRST_S
