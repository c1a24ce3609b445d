"""Short work is done at once, long work in threads, very long work in turns that nobody can take from others."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from models.errors import QueueFull
from server.long_work import LONG_BYTES, NUM_PLACES, SHORT_BYTES, LongWork

HUGE = LONG_BYTES + 1


@pytest.mark.parametrize("num_bytes", [0, SHORT_BYTES, SHORT_BYTES + 1, LONG_BYTES, HUGE])
async def test_work_is_done_in_a_thread_where_it_is_long(num_bytes: int) -> None:
    worker = await LongWork().run(num_bytes, threading.current_thread)
    assert (worker is threading.current_thread()) == (num_bytes <= SHORT_BYTES)


async def test_what_counts_as_short_may_be_less() -> None:
    worker = await LongWork().run(10, threading.current_thread, short_bytes=9)
    assert worker is not threading.current_thread()


@pytest.mark.parametrize("num_bytes", [0, SHORT_BYTES + 1, HUGE])
async def test_errors_of_the_work_reach_whoever_waits(num_bytes: int) -> None:
    work = LongWork()
    for _ in range(2 * NUM_PLACES):  # and its place is free again
        with pytest.raises(ZeroDivisionError):
            await work.run(num_bytes, lambda: 1 // 0)


class Gated:
    """Work that notes that it has begun, and waits."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()

    def named(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self.begun.append(name)
            self.gate.wait(10)
            return name

        return work

    async def until(self, *names: str) -> None:
        async with asyncio.timeout(10):
            while sorted(self.begun) != sorted(names):
                await asyncio.sleep(0.005)


async def test_a_tenant_leaves_a_place_to_others() -> None:
    work, gated = LongWork(), Gated()
    heavy = [asyncio.create_task(work.run(HUGE, gated.named(f"heavy {i}"), "heavy")) for i in range(5)]
    await gated.until("heavy 0")
    other = asyncio.create_task(work.run(HUGE, gated.named("other"), "other"))
    await gated.until("heavy 0", "other")
    gated.gate.set()
    assert await other == "other"
    assert await asyncio.gather(*heavy) == [f"heavy {i}" for i in range(5)]


async def test_places_of_those_who_leave_are_free_once_their_work_has_ended() -> None:
    work, gated = LongWork(), Gated()
    first = [asyncio.create_task(work.run(HUGE, gated.named(f"first {i}"))) for i in range(NUM_PLACES)]
    await gated.until(*(f"first {i}" for i in range(NUM_PLACES)))
    leaving = asyncio.create_task(work.run(HUGE, gated.named("never begins")))
    last = asyncio.create_task(work.run(HUGE, gated.named("last")))
    await asyncio.sleep(0)
    for task in (*first, leaving):
        task.cancel()
    await asyncio.gather(*first, leaving, return_exceptions=True)
    assert len(gated.begun) == NUM_PLACES
    gated.gate.set()
    assert await last == "last"
    assert "never begins" not in gated.begun


async def test_a_turn_that_comes_to_somebody_just_leaving_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[asyncio.Future[str]] = []

    def begin(work: Callable[[], str]) -> asyncio.Future[str]:
        running.append(asyncio.get_running_loop().create_future())
        return running[-1]

    monkeypatch.setattr("server.long_work.run_in_daemon_thread", begin)
    work = LongWork()
    tasks = [asyncio.create_task(work.run(HUGE, str)) for _ in range(NUM_PLACES + 2)]
    await asyncio.sleep(0)
    running[0].set_result("first")
    await asyncio.sleep(0)  # its place has been given on, and the task that got it has not run yet
    tasks[NUM_PLACES].cancel()
    await asyncio.gather(tasks[NUM_PLACES], return_exceptions=True)
    await asyncio.sleep(0)
    assert len(running) == NUM_PLACES + 1
    for future in running[1:]:
        future.set_result("other")
    assert await tasks[-1] == "other"


async def test_too_much_waiting_of_one_tenant_is_refused() -> None:
    work, gated = LongWork(), Gated()
    tasks = [asyncio.create_task(work.run(HUGE, gated.named("x"), "heavy")) for _ in range(65)]
    await gated.until("x")
    with pytest.raises(QueueFull) as caught:
        await work.run(HUGE, gated.named("x"), "heavy")
    assert caught.value.retry_after_s
    gated.gate.set()
    await asyncio.gather(*tasks)
