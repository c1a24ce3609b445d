"""A real Redis or Valkey for a test, and servers that only pretend to be one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from loadtest.redis_process import BINARY, redis_server
from tests.listening import stop_listening

__all__ = ["BINARY", "REASON", "fake_server", "redis_server"]

REASON = "there is no valkey-server or redis-server here (apt-get install redis-server)"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def fake_server(answer: Answer) -> AsyncIterator[str]:
    """Something that listens where Redis should be; `answer` talks to each connection."""
    open_writers: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await answer(reader, writer)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await stop_listening(server)
        for writer in open_writers:
            writer.close()
        await server.wait_closed()
