"""Closing a connection whose client is still sending, without a reset that would destroy the answer."""

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_S = 2.0
"""How long a client may go on sending."""


class LingeringTransport:
    """A transport whose `close` ends our side first, and the connection once the client has ended its own.

    The kernel answers data that nobody will read with a reset, and a reset discards what the client has not read yet.
    So what still arrives is discarded for up to `LINGER_S`. `is_sending` says whether anything can still arrive; if
    not, the connection is closed at once.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_sending: Callable[[], bool]):
        self._transport = transport
        self._loop = loop
        self._is_sending = is_sending
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._timer is not None or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():  # uvicorn closes more than once
            return
        if not self._is_sending() or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._timer = self._loop.call_later(LINGER_S, self._transport.close)
        self._transport.write_eof()
        self._transport.resume_reading()

    def forget(self) -> None:
        """The connection is over: drop `is_sending`, which refers to the protocol, which refers to this object."""
        self._is_sending = lambda: False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
