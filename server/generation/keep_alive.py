"""Comments in streams that have nothing to say for a while: proxies keep such a connection open, and a client that has
left is noticed when it is written to.

Source: WHATWG HTML, section 9.2.7: a comment line every 15 seconds or so against proxies that drop idle connections.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import Message, Send

COMMENT = b": keep-alive\n\n"
PAUSE_S = 10.0


@contextlib.asynccontextmanager
async def keep_alive(send: Send, pause_s: float = PAUSE_S) -> AsyncIterator[Send]:
    """A `send` for the whole events of a stream that has begun; where nothing is sent for `pause_s`, a comment is."""
    loop = asyncio.get_running_loop()
    last_s, is_sending = loop.time(), False

    async def send_and_note(message: Message) -> None:
        nonlocal last_s, is_sending
        is_sending = True
        try:
            await send(message)
        finally:
            last_s, is_sending = loop.time(), False

    async def comment() -> None:
        while True:
            await asyncio.sleep(last_s + pause_s - loop.time() if not is_sending else pause_s)
            if not is_sending and loop.time() >= last_s + pause_s:
                await send_and_note({"type": "http.response.body", "body": COMMENT, "more_body": True})

    task = loop.create_task(comment())
    task.add_done_callback(_forget_error)
    try:
        yield send_and_note
    finally:
        task.cancel()


def _forget_error(task: "asyncio.Task[None]") -> None:
    """The stream itself meets what went wrong."""
    if not task.cancelled():
        task.exception()
