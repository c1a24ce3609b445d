import asyncio

import pytest
from starlette.types import Message

from server.generation.keep_alive import COMMENT, keep_alive


class Client:
    def __init__(self, slow_s: float = 0.0, error: Exception | None = None) -> None:
        self.bodies: list[bytes] = []
        self._slow_s = slow_s
        self._error = error

    async def send(self, message: Message) -> None:
        await asyncio.sleep(self._slow_s)
        if self._error is not None:
            raise self._error
        self.bodies.append(message["body"])


def event(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def until(client: Client, num_comments: int) -> None:
    while client.bodies.count(COMMENT) < num_comments:
        await asyncio.sleep(0.005)


async def test_a_stream_that_is_silent_gets_comments_between_its_events() -> None:
    client = Client()
    async with asyncio.timeout(10), keep_alive(client.send, 0.02) as send:
        await until(client, 2)
        await send(event(b"a"))
        await until(client, 3)
        await send(event(b"b"))
    num = len(client.bodies)
    assert client.bodies[-1] == b"b"
    assert [body for body in client.bodies if body != COMMENT] == [b"a", b"b"]
    await asyncio.sleep(0.06)
    assert len(client.bodies) == num  # and none once it has ended


async def test_a_stream_that_speaks_gets_none() -> None:
    client = Client()
    async with keep_alive(client.send, 3600) as send:
        for _ in range(50):
            await send(event(b"a"))
            await asyncio.sleep(0)
    assert COMMENT not in client.bodies


async def test_no_comment_is_written_into_an_event() -> None:
    client = Client(slow_s=0.1)
    async with keep_alive(client.send, 0.02) as send:
        await send(event(b"a"))
        assert client.bodies == [b"a"]


async def test_a_client_that_has_left_ends_the_comments_alone() -> None:
    client = Client(error=OSError("gone"))
    async with keep_alive(client.send, 0.01) as send:
        await asyncio.sleep(0.05)
        with pytest.raises(OSError, match="gone"):
            await send(event(b"a"))
