"""Running a server: listening, signals, and an orderly stop.

First SIGTERM or SIGINT: the server is no longer ready, refuses new work, lets running requests finish within the grace
period, and exits with 0 at most two seconds after that, whatever clients do. Second: the process ends at once, by that
signal. SIGHUP: settings and keys are read again.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from models.errors import BadRequest
from server.app import create_app
from server.context import Context
from server.http.connection_limits import make_protocol
from server.http.open_files import raise_limit
from server.lifecycle.memory import IdleMemory
from server.lifecycle.reload import reload

logger = logging.getLogger(__name__)

POLL_S = 0.05
COLLECTED_AT = (10_000, 5, 50)
"""Young objects are collected once there are so many (10 ms at most), middle-aged ones each fifth time, old ones each
50th time after that."""
SWITCH_S = 0.0005
"""How long a thread may keep the interpreter that another one waits for. A step of the engine gives it up a dozen times
and needs it back each time; Python's own 5 ms would make 60 of that beside one thread that reads a long body."""
SERIAL_TOKENIZING = ("TOKENIZERS_PARALLELISM", "false")
"""A text is tokenised by the thread that asks for it, which may give way to others (`models/thread_priority.py`);
otherwise by threads of the library, which do not."""
LAST_BYTES_S = 0.8
"""How long clients may take to read what is left once the engines have stopped, and again once connections are asked to
close. Together less than the two seconds that the server has after the grace period."""


class Server(uvicorn.Server):
    """uvicorn, stopped and reloaded by signals as described above."""

    def __init__(self, context: Context, announce: Callable[[str], None]) -> None:
        super().__init__(uvicorn_config(context))
        self._context = context
        self._announce = announce
        self._drain: asyncio.Task[None] | None = None
        self._reload: asyncio.Task[None] | None = None

    async def main_loop(self) -> None:
        """Runs once the sockets listen."""
        if hasattr(signal, "SIGHUP"):  # Windows has none
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._begin_reload)
        self._announce(self.url)
        idle_memory = asyncio.create_task(IdleMemory(is_idle=self._is_idle).run())
        try:
            await super().main_loop()
        finally:
            idle_memory.cancel()

    def _is_idle(self) -> bool:
        return not self._context.drain.open_keys and not self._context.num_streams

    @property
    def url(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Runs between two bytecodes of the main thread: it only sets a flag; `on_tick` acts on it."""
        if self._context.drain.is_draining:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._context.drain.is_draining = True

    def _begin_reload(self) -> None:
        self._reload = asyncio.get_running_loop().create_task(self._reload_settings())

    async def _reload_settings(self) -> None:
        with contextlib.suppress(BadRequest):  # logged already, and a signal has no caller to answer
            await reload(self._context)

    async def on_tick(self, counter: int) -> bool:
        if self._context.drain.is_draining and self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._finish())
        return await super().on_tick(counter)

    async def _finish(self) -> None:
        """Wait for open requests, at most the grace period; then stop the engines, which ends what is left."""
        drain, grace_s = self._context.drain, self._context.config.grace_s
        logger.info("draining open_requests=%d grace_s=%g", len(drain.open_keys), grace_s)
        await self._wait_idle(grace_s)
        if drain.open_keys:
            logger.warning("grace period over open_requests=%d", len(drain.open_keys))
            await self._context.stop_engines()
            await self._wait_idle(LAST_BYTES_S)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections; those of clients that do not read, or have not sent their request, are cut off."""
        cut_off = asyncio.get_running_loop().call_later(LAST_BYTES_S, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            cut_off.cancel()

    def _cut_off(self) -> None:
        """Their requests end as they do when a client goes away."""
        transports = [connection.transport for connection in self.server_state.connections]
        logger.warning("cutting off connections=%d", len(transports))
        for transport in transports:
            transport.abort()

    async def _wait_idle(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + limit_s
        while self._context.drain.open_keys and loop.time() < end_s:
            await asyncio.sleep(POLL_S)


def tame_collector() -> None:
    """Keep the garbage collector from going through everything again and again: it stops every thread meanwhile, and
    one request may make 200,000 objects. It leaves alone what there is already, the little garbage of a start included:
    to look for that would hold up the first request. `give_memory_back` undoes that."""
    gc.freeze()
    gc.set_threshold(*COLLECTED_AT)


def uvicorn_config(context: Context) -> uvicorn.Config:
    config = context.config
    return uvicorn.Config(
        create_app(context),
        loop="asyncio" if sys.platform == "win32" else "uvloop",
        http=make_protocol(lambda: context.config.limits, context.refused_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=config.access_log,
        server_header=False,
        timeout_keep_alive=config.keep_alive_s,
        timeout_graceful_shutdown=None,  # `Server.shutdown` has a bound of its own
    )


def serve(context: Context, listener: socket.socket, announce: Callable[[str], None]) -> int:
    """Serve until told to stop; `announce` gets the URL once it listens. Returns the exit status.

    Must run on the main thread for signals to count.
    """
    raise_limit(context.config.limits.max_connections)
    tame_collector()
    sys.setswitchinterval(SWITCH_S)
    os.environ.setdefault(*SERIAL_TOKENIZING)
    server = Server(context, announce)
    server.run(sockets=[listener])
    return 0 if server.started else 1
