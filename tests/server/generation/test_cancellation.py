"""What cuts an answer short reaches the work, the stream, or both, once."""

import asyncio
import math
import time

import pytest
from starlette.types import Message

from models.errors import DeadlineExceeded
from server.generation.cancellation import Cancellation, cancelled_by
from server.generation.shared_generation import Kept
from server.students.admission_gate import Terms
from server.students.event_bridge import ClientGone, EventStream

ENDLESS = Terms(deadline_s=math.inf, time_limit_s=math.inf)


class Client:
    """Sends nothing until it leaves."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()

    async def receive(self) -> Message:
        return await self._messages.get()

    def send(self, kind: str) -> None:
        self._messages.put_nowait({"type": kind})


async def test_work_that_ends_in_time_gives_its_result() -> None:
    cancellation = Cancellation()

    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await cancellation.run(work()) == "done"
    assert not cancellation.is_cancelled


async def test_cancelled_work_is_ended_and_raises_the_cause() -> None:
    cancellation = Cancellation()
    ended: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    asyncio.get_running_loop().call_later(0.01, cancellation.cancel, ClientGone())
    with pytest.raises(ClientGone):
        await cancellation.run(work())
    assert ended == [True]
    assert cancellation.is_cancelled


async def test_work_is_not_begun_once_cancelled() -> None:
    cancellation = Cancellation()
    begun: list[bool] = []

    async def work() -> None:
        begun.append(True)

    cancellation.cancel(ClientGone())
    with pytest.raises(ClientGone):
        await cancellation.run(work())
    assert begun == []


async def test_task_that_is_cancelled_from_outside_stays_cancelled() -> None:
    cancellation = Cancellation()
    running = asyncio.create_task(cancellation.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_first_cause_counts() -> None:
    cancellation = Cancellation()
    cancellation.cancel(DeadlineExceeded("late"))
    cancellation.cancel(ClientGone())
    with pytest.raises(DeadlineExceeded):
        await cancellation.run(asyncio.sleep(0))


@pytest.mark.parametrize("is_cancelled_first", [True, False])
async def test_watched_stream_fails(is_cancelled_first: bool) -> None:
    cancellation, stream = Cancellation(), EventStream(Kept(), 1)
    if is_cancelled_first:
        cancellation.cancel(ClientGone())
    cancellation.watch(stream)
    cancellation.cancel(ClientGone())
    with pytest.raises(ClientGone):
        await stream.take()


async def test_client_that_leaves_cancels() -> None:
    client = Client()
    with cancelled_by(client.receive, ENDLESS) as cancellation:
        client.send("http.request")
        await asyncio.sleep(0.01)
        assert not cancellation.is_cancelled
        client.send("http.disconnect")
        with pytest.raises(ClientGone):
            await cancellation.run(asyncio.Event().wait())


async def test_deadline_cancels_and_says_how_long_it_was() -> None:
    terms = Terms(deadline_s=time.monotonic() + 0.01, time_limit_s=0.25)
    with cancelled_by(Client().receive, terms) as cancellation, pytest.raises(DeadlineExceeded, match=r"0\.25 s"):
        await cancellation.run(asyncio.Event().wait())


async def test_nothing_cancels_after_the_end() -> None:
    client = Client()
    with cancelled_by(client.receive, Terms(deadline_s=time.monotonic() + 0.01, time_limit_s=1.0)) as cancellation:
        pass
    client.send("http.disconnect")
    await asyncio.sleep(0.03)
    assert not cancellation.is_cancelled
    assert len(asyncio.all_tasks()) == 1
