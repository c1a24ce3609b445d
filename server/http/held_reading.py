"""Reading from a client pauses while the application is behind with a body, and while later requests are held."""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl


class HeldReading(FlowControl):
    """uvicorn's flow control, but reading stays paused while it is held, whoever asks to resume it.

    uvicorn resumes it whenever the application waits for something of the current request, even its end.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_held = False

    def hold(self) -> None:
        self._is_held = True
        self.pause_reading()

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self.resume_reading()

    def resume_reading(self) -> None:
        if not self._is_held:
            super().resume_reading()
