"""Clients that have ended their side of the connection and may still read: those that will send no more, and those that
have left, look the same.

They are told apart by writing: whoever has left answers with a reset, and the next write fails. Until an answer begins
what is written is an interim response, which clients skip.
"""

import asyncio
from typing import Protocol

TELL = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Source: RFC 9110 15.2: any number may come before the answer, asked for or not. Some clients skip 100 alone."""
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0
PATIENCE_S = 2.0
"""How long the beginning of an answer may take that may have none before it."""


class Connection(Protocol):
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    @property
    def is_silent(self) -> bool:
        """Whether a request waits for the beginning of its answer."""
        ...

    @property
    def knows_interim(self) -> bool:
        """Whether that answer may have others before it."""
        ...


class HalfClose:
    """Writes to a client that has ended its side until its answer begins, which does so itself from then on."""

    def __init__(self, connection: Connection) -> None:
        self.has_begun = False
        self._connection: Connection | None = connection
        self._timer: asyncio.TimerHandle | None = None
        self._waited_s = 0.0

    def begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            self._tell(FIRST_WAIT_S)

    def forget(self) -> None:
        """The connection is over. It refers to this object, and must not wait for a garbage collection."""
        self._connection = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, wait_s: float) -> None:
        connection = self._connection
        if connection is None or connection.transport.is_closing():
            return
        if connection.is_silent and connection.knows_interim:
            connection.transport.write(TELL)
        elif connection.is_silent and self._waited_s >= PATIENCE_S:
            connection.transport.abort()
            return
        self._waited_s += wait_s
        self._timer = connection.loop.call_later(wait_s, self._tell, min(2 * wait_s, LONGEST_WAIT_S))
