"""Work on what a client sent, or is sent, beside the event loop: in a thread when it is long, in turns when it is very
long."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from server.tenant_line import TenantLine
from server.threads import run_in_daemon_thread, settle

T = TypeVar("T")

TEXT_BYTES = 4 * 1024
"""So much text is tokenised in a millisecond."""
SHORT_BYTES = 32 * 1024
"""So much is decoded, checked or written in half a millisecond: about what changing threads costs under load."""
LONG_BYTES = 128 * 1024
"""Work on more than this may take long, and is done in turns."""
NUM_PLACES = 2
"""How much of it at once. Each is one more thread that the loop, and the engine, share the interpreter with."""


@dataclass(slots=True, eq=False)
class Turn:
    tenant: str | None
    begun: asyncio.Future[None]


class LongWork:
    """Owned by the loop."""

    def __init__(self) -> None:
        self._line: TenantLine[Turn] = TenantLine(
            NUM_PLACES,
            what_waits="long requests wait for their turn",
            retry_after_s=1.0,
            max_waiting=256,
            max_waiting_of_tenant=64,
        )

    async def run(
        self, num_bytes: int, work: Callable[[], T], tenant: str | None = None, *, short_bytes: int = SHORT_BYTES
    ) -> T:
        """What `work` on so many bytes returns. Work that has begun goes on when whoever waits is cancelled.

        Raises: what `work` does; QueueFull, Unavailable when too much waits.
        """
        if num_bytes <= short_bytes:
            return work()
        if num_bytes <= LONG_BYTES:
            return await asyncio.to_thread(work)
        return await self._run_in_turn(work, tenant)

    async def _run_in_turn(self, work: Callable[[], T], tenant: str | None) -> T:
        turn = Turn(tenant, asyncio.get_running_loop().create_future())
        self._line.push(tenant, turn)
        self._begin_next()
        try:
            await turn.begun
        except asyncio.CancelledError:
            self._leave(turn)
            raise
        done = run_in_daemon_thread(work)
        done.add_done_callback(lambda _: self._end(tenant))
        return await asyncio.shield(done)  # its place is free once the thread has ended, not before

    def _begin_next(self) -> None:
        while (turn := self._line.pop()) is not None:
            settle(turn.begun, None)

    def _leave(self, turn: Turn) -> None:
        if turn.begun.cancelled():
            self._line.remove(turn.tenant, turn)
        else:  # it was given its place just before
            self._end(turn.tenant)

    def _end(self, tenant: str | None) -> None:
        self._line.release(tenant)
        self._begin_next()
