"""HTTP connections with limits that uvicorn lacks: the size and time of a head, and the time of a slow reader."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from server.http.half_close import HalfClose
from server.http.held_reading import HeldReading
from server.http.lingering_close import LingeringTransport
from server.http.no_request import why_no_request, why_wrong_head
from server.http.open_files import num_allowed
from server.http.request_parser import RequestParser, Stage
from server.http.unchunked import without_chunks
from server.settings.config import Limits
from server.wire import errors

BAD_REQUEST, TIMED_OUT, URI_TOO_LONG, HEADERS_TOO_LARGE, BUSY = 400, 408, 414, 431, 503
SLOW_READER = "slow_reader"

MANY_IN_A_ROW = 64
"""Requests that one connection has answered without a pause while more of them wait behind."""
PAUSE_S = 0.005
"""Before each further one: whoever sends thousands at once would have the event loop to itself."""


class BoundedProtocol(HttpToolsProtocol):
    """`limits` is called at every use, so that a reload takes effect at once. Refusals happen before there is a
    request: nothing above this layer sees them, so they are counted here, by code.

    One request at a time: bytes that come behind it are held until it has been answered, so that uvicorn's own pipeline
    stays empty and `cycle` is always the request being answered. After many in a row each waits a little."""

    limits: Callable[[], Limits]
    refusals: Counter[str]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._requests = RequestParser(self)
        self.parser = self._requests  # type: ignore[assignment]
        self._unparsed = bytearray()
        self._reading: HeldReading
        self._num_head_bytes = 0
        self._is_in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._pause_timer: asyncio.TimerHandle | None = None
        self._num_in_a_row = 0
        self._lingering: LingeringTransport
        self._half_close = HalfClose(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = LingeringTransport(transport, self.loop, self._is_sending)
        super().connection_made(self._lingering)  # type: ignore[arg-type]
        self.flow = self._reading = HeldReading(self._lingering)  # type: ignore[arg-type]
        max_connections = num_allowed(self.limits().max_connections)
        if len(self.connections) > max_connections:
            is_wanted = max_connections == self.limits().max_connections
            bound = "limits.max_connections" if is_wanted else "the server's limit of open files"
            self._refuse(BUSY, f"{max_connections} connections are open ({bound}); try again later")
            return
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing may refer to this object any more: what it holds must not wait for a garbage collection."""
        self._cancel_timers()
        self._half_close.forget()
        self._unset_keepalive_if_required()
        self._lingering.forget()
        super().connection_lost(exc)
        self._unparsed.clear()
        self._requests.close()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unparsed += data
        self._parse()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. Whole requests are answered all the same, unless it turns out to have left."""
        self._half_close.begin()
        return self._is_holding

    def _parse(self) -> None:
        """Parse what came until there is a whole request without an answer; hold the rest."""
        while self._unparsed and not self._is_holding and not self.transport.is_closing():
            self._parse_piece(self._requests.take_piece(self._unparsed))
        if self.transport.is_closing():
            self._unparsed.clear()
        elif self._half_close.has_begun and not self._is_holding:
            self._close()
        elif len(self._unparsed) > HIGH_WATER_LIMIT:
            self._reading.hold()
        else:  # hold a little and go on reading: otherwise a client that disconnects is not noticed
            self._reading.release()

    def _parse_piece(self, piece: bytes) -> None:
        self._unset_keepalive_if_required()
        self._num_head_bytes += len(piece) if self._requests.stage is not Stage.BODY else 0
        try:
            self._requests.feed_data(piece)
        except httptools.HttpParserError as error:
            headers = [] if self._requests.stage is Stage.BETWEEN_REQUESTS else self.headers
            message = why_no_request(error, piece, self._requests.get_method(), headers)
            self.logger.warning(message)
            self.send_400_response(message)
        limits, requests = self.limits(), self._requests
        if self._is_in_head and self._num_head_bytes > limits.max_head_bytes:
            self._refuse(HEADERS_TOO_LARGE, self._too_large("the head has"))
        elif requests.num_trailers > limits.max_headers or requests.num_trailer_bytes > limits.max_head_bytes:
            self._refuse(HEADERS_TOO_LARGE, self._too_large("the body's trailers or chunk extensions have"))
        elif self._is_idle and self._head_timer is None:
            # The rest of an unread body, or empty lines: they stopped uvicorn's timer without starting a request.
            self._head_timer = self.loop.call_later(limits.head_timeout_s, self._give_up_rest)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._is_in_head:
            self._begin_head()

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._cancel_head_timer()
        refusal = self._wrong_head()
        if refusal is not None:
            self._refuse(*refusal)
        else:
            self._is_in_head = False
            self._num_head_bytes = 0
            super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._is_http_1_0:
            app = without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _wrong_head(self) -> tuple[int, str] | None:
        """Status and message if a whole head must be refused."""
        limits, requests = self.limits(), self._requests
        if len(self.url) > limits.max_url_bytes:
            return URI_TOO_LONG, f"the URL is longer than {limits.max_url_bytes} bytes (limits.max_url_bytes)"
        if len(self.headers) > limits.max_headers or self._headers_bytes() > limits.max_head_bytes:
            return HEADERS_TOO_LARGE, self._too_large("the head has")
        wrong = why_wrong_head(requests.get_http_version(), requests.get_method(), self.headers)
        return None if wrong is None else (BAD_REQUEST, wrong)

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.transport.is_closing():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read."""
        self._refuse(BAD_REQUEST, msg)

    def pause_writing(self) -> None:
        """The client does not read, and the buffer for it is full."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits().write_timeout_s, self._give_up_writing)

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._cancel_write_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._num_in_a_row = self._num_in_a_row + 1 if self._unparsed else 0
        if self.transport.is_closing():
            self._close()
        elif self._num_in_a_row > MANY_IN_A_ROW:
            self._pause_timer = self.loop.call_later(PAUSE_S, self._go_on)
        else:
            self._parse()

    def _go_on(self) -> None:
        self._pause_timer = None
        self._parse()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._close()

    @property
    def _is_answering(self) -> bool:
        """A whole request waits for its answer, or for the end of it."""
        return self._requests.stage is not Stage.BODY and self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_holding(self) -> bool:
        """What has come behind the newest request has to wait."""
        return self._is_answering or self._pause_timer is not None

    @property
    def is_silent(self) -> bool:
        return self._is_answering and not self.cycle.response_started

    @property
    def knows_interim(self) -> bool:
        return not self._is_http_1_0  # RFC 9110 15.2

    @property
    def _is_http_1_0(self) -> bool:
        return self.scope["http_version"] == "1.0"

    @property
    def _is_idle(self) -> bool:
        """Between two requests; before the first one, the timer of the head runs."""
        return not self._is_in_head and self.cycle is not None and self.cycle.response_complete

    def _is_sending(self) -> bool:
        """Whether the client may be in the middle of a request."""
        if self._half_close.has_begun:
            return False
        is_in_head = self._is_in_head and self._num_head_bytes > 0
        return is_in_head or self._requests.stage is Stage.BODY or bool(self._unparsed)

    def _begin_head(self) -> None:
        self._is_in_head = True
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(self.limits().head_timeout_s, self._give_up_head)

    def _give_up_head(self) -> None:
        self._head_timer = None
        self._refuse(TIMED_OUT, f"no whole request came within {self.limits().head_timeout_s:g} s")

    def _give_up_rest(self) -> None:
        self._head_timer = None
        if self._is_idle:
            self.refusals[errors.ROUTE_CODES[TIMED_OUT]] += 1
            self._close()

    def _close(self) -> None:
        """Close once the client has read everything, or is too slow."""
        self.transport.close()
        if self._write_timer is None and self in self.connections:
            self._write_timer = self.loop.call_later(self.limits().write_timeout_s, self._give_up_writing)

    def _give_up_writing(self) -> None:
        """Abort the connection: closing it would wait for the client to read the rest."""
        self._write_timer = None
        self.refusals[SLOW_READER] += 1
        self.logger.warning("client reads too slowly, connection cut client=%s", self.client)
        self.transport.abort()

    def _headers_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _too_large(self, what_has: str) -> str:
        limits = self.limits()
        return (
            f"{what_has} more than {limits.max_headers} headers or {limits.max_head_bytes} bytes "
            "(limits.max_headers, limits.max_head_bytes)"
        )

    def _refuse(self, status: int, message: str) -> None:
        """Answer and close, unless an answer has started."""
        if self.transport.is_closing():
            return
        self._cancel_timers()
        code = errors.ROUTE_CODES[status]
        self.refusals[code] += 1
        if self._may_answer():
            body = errors.error_body(message, status, code)
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
            retry = b"retry-after: 1\r\n" if status == BUSY else b""
            shown = b"" if self._requests.get_method() == b"HEAD" else body
            self.transport.write(STATUS_LINE[status] + head + retry + b"\r\n" + shown)
        self._close()

    def _may_answer(self) -> bool:
        """Whether what was refused has no answer yet, not even a part of one. A request whose body turns out to be
        broken gets its answer from here, and the application, which may still wait for the body, is told that the
        client has gone."""
        cycle = self.cycle
        if cycle is None:
            return True
        if cycle.response_complete:  # unless the next one has begun, what was wrong is the rest of the answered one
            return self._requests.stage is Stage.HEAD
        if cycle.response_started:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return True

    def _cancel_timers(self) -> None:
        self._cancel_head_timer()
        self._cancel_write_timer()
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def make_protocol(limits: Callable[[], Limits], refusals: Counter[str]) -> type[BoundedProtocol]:
    """A class for uvicorn, which makes an instance per connection."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": staticmethod(limits), "refusals": refusals})
