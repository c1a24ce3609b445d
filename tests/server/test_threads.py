"""Work in new threads: its result or error reaches the loop, whatever it is."""

import asyncio
import threading

import pytest

from server.threads import run_in_daemon_thread


class Panic(BaseException):
    """What a library in Rust raises: no Exception."""


def fail_with(error: BaseException) -> None:
    raise error


def test_work_runs_in_a_daemon_thread_and_brings_its_result() -> None:
    async def ask() -> bool:
        return await run_in_daemon_thread(lambda: threading.current_thread().daemon)

    assert asyncio.run(ask())


@pytest.mark.parametrize(("error", "kind"), [(ValueError("no"), ValueError), (Panic("no"), RuntimeError)])
def test_work_that_fails_tells_its_waiter(error: BaseException, kind: type[Exception]) -> None:
    async def ask() -> None:
        await run_in_daemon_thread(lambda: fail_with(error))

    with pytest.raises(kind, match="no"):
        asyncio.run(ask())


def test_result_nobody_waits_for_is_dropped() -> None:
    gate, ended = threading.Event(), threading.Event()

    def work() -> None:
        gate.wait(10)
        ended.set()

    async def leave() -> None:
        run_in_daemon_thread(work).cancel()
        gate.set()
        await run_in_daemon_thread(lambda: ended.wait(10))

    asyncio.run(leave())
    assert ended.is_set()
