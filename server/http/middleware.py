"""What every request has: an id, errors as OpenAI bodies, a log line and metrics. Pure ASGI."""

import asyncio
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Iterable

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import ServingError, Stopping
from server.access.hosts import require_known_host
from server.access.keys import API_KEY_HEADER, HTTP_BLANKS, needs_key
from server.access.rate_limit import Meter
from server.context import Context
from server.http.addresses import plain_path
from server.students.admission_gate import DEADLINE_HEADER, time_limit_s
from server.students.event_bridge import ClientGone
from server.telemetry.request_log import fields_of, log_request
from server.telemetry.request_record import KEY, Record
from server.telemetry.tracing import TRACE_HEADERS
from server.wire import errors, sse
from server.wire.message_errors import error_body_at, is_messages_path

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Logged and counted, never sent: the client left before its answer."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_WORK = re.compile(r"/v1/|/tokenize$|/detokenize$")


class RequestMiddleware:
    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = plain_path(scope["path"])  # whose rules for keys and hosts hold for every spelling
        exchange = Exchange(self._context, scope, send)
        await exchange.run(self._app, receive)


class Exchange:
    """One request and its response."""

    def __init__(self, context: Context, scope: Scope, send: Send) -> None:
        self._context = context
        self._scope = scope
        self._raw_send = send
        fresh = uuid.uuid4().hex
        self._given_id = _given_id(scope)
        self._record = Record(id=self._given_id or fresh, key=fresh)
        self._is_work = _WORK.match(scope["path"]) is not None
        self._entered: Meter | None = None
        scope[KEY] = self._record

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        open_keys = self._context.drain.open_keys
        if self._is_work:
            open_keys.add(self._record.key)
        try:
            self._check()
            await app(self._scope, receive, self._send)
        except ClientGone:
            self._record.status = CLIENT_GONE
        except ServingError as error:
            self._context.keyring.count(error)
            await self._fail(error)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception
            logger.exception("request failed id=%s path=%s", self._record.id, self._scope["path"])
            await self._fail(ServingError(errors.INTERNAL_MESSAGE), cause=error)
        finally:
            open_keys.discard(self._record.key)
            if self._entered is not None:
                self._entered.leave()
            self._note()

    def _take_key(self) -> None:
        """Name the request after its id. The name differs from those of other tenants, who must not learn that an id is
        in use, and from that of another open request with this id."""
        record, context = self._record, self._context
        if self._given_id is None:
            return
        name = self._given_id if record.tenant is None else f"{self._given_id}.{_mark(record.tenant)}"
        is_taken = name in context.drain.open_keys or context.has_sequences(name)
        fresh, record.key = record.key, f"{name}.{record.key[:12]}" if is_taken else name
        if self._is_work:
            context.drain.open_keys.discard(fresh)
            context.drain.open_keys.add(record.key)

    def _check(self) -> None:
        """Raises: Forbidden, Unauthorized, RateLimited, Stopping; InvalidParameter for a deadline that is no number."""
        context, record = self._context, self._record
        host = next(iter(self._headers(b"host")), None)
        require_known_host(context.config, len(context.keyring), self._scope["path"], host)
        if len(context.keyring) and self._needs_key():
            record.identify(context.keyring, self._header(b"authorization"), self._header(API_KEY_HEADER.encode()))
        self._take_key()
        if self._is_work and self._context.drain.is_draining:
            raise Stopping("this server is stopping; send the request again", retry_after_s=1.0)
        if self._is_work and self._scope["method"] == "POST":
            record.time_limit_s = time_limit_s(context.config, self._headers(DEADLINE_HEADER.encode()))
            if record.meter is not None:
                record.meter.enter(time.monotonic())
                self._entered = record.meter

    def _needs_key(self) -> bool:
        """OPTIONS tells methods alone, and is what browsers and proxies ask before they send a key."""
        return self._scope["method"] != "OPTIONS" and needs_key(self._scope["path"], self._context.config)

    def _headers(self, name: bytes) -> list[str]:
        headers = self._scope["headers"]
        return [value.decode("latin-1").strip(HTTP_BLANKS) for key, value in headers if key == name]

    def _header(self, name: bytes) -> str:
        return next(iter(self._headers(name)), "")

    async def _send(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            await self._raw_send(message)
            return
        meter = self._record.meter if self._is_work else None
        limits = [] if meter is None else meter.headers(time.monotonic())
        message["headers"] = [*message.get("headers", ()), *self._id_headers(), *limits]
        _check_headers(message["headers"])
        await self._raw_send(message)
        self._record.status = message["status"]

    def _id_headers(self) -> list[tuple[bytes, bytes]]:
        """Source: Anthropic API reference: there it is called `request-id`."""
        names = (b"x-request-id", b"request-id") if is_messages_path(self._scope["path"]) else (b"x-request-id",)
        return [(name, self._record.id.encode()) for name in names]

    async def _fail(self, error: ServingError, cause: BaseException | None = None) -> None:
        """Send the error: as a response, or inside a stream that has started."""
        self._record.error = error.code
        status, path = errors.status_of(error), self._scope["path"]
        body = error_body_at(path, error.message, status, error.code, error.param, request_id=self._record.id)
        if self._record.status is None:
            await self._respond(status, body, errors.headers_of(error))
        elif self._record.is_event_stream:
            frame = self._record.frame_error
            body = sse.frame(body) if frame is None else frame(error)
            await self._raw_send({"type": "http.response.body", "body": body})
        elif cause is not None:  # half a plain response was sent: all that is left is to abort the connection
            raise cause

    async def _respond(self, status: int, body: bytes, extra: list[tuple[bytes, bytes]]) -> None:
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length), *extra]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._raw_send({"type": "http.response.body", "body": body})

    def _note(self) -> None:
        record, method = self._record, self._scope["method"]
        status = record.status or CLIENT_GONE
        route = _route_of(self._scope)
        self._context.metrics.observe_http(method, route, status)
        self._context.metrics.tenants.observe(record, status)
        if self._context.tracing is not None:
            self._context.tracing.observe(record, self._trace_headers(), method, route, status)
        log_request(fields_of(record, method, route, status), is_work=self._is_work)

    def _trace_headers(self) -> dict[str, str]:
        """The caller's trace headers; on a server with keys, those of a caller without a key are ignored."""
        if len(self._context.keyring) and self._record.api_key is None:
            return {}
        return {name: self._header(name.encode()) for name in TRACE_HEADERS}


def _check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises: ValueError. uvicorn checks only after it counts the response as started, too late to send another one."""
    for name, value in headers:
        if _CONTROL.search(name) or _CONTROL.search(value):
            raise ValueError(f"a header holds a control character: {name!r}: {value!r}")


def _given_id(scope: Scope) -> str | None:
    """The id a request came with, if it is safe in logs and headers."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
    return None if given is None or _REQUEST_ID.fullmatch(given) is None else given.decode()


def _mark(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:8]


def _route_of(scope: Scope) -> str:
    """The template of a request's path, even if it was refused before routing; `unmatched` for unknown paths."""
    route = scope.get("route")
    if route is None:
        routes = scope["app"].routes
        route = next((one for one in routes if one.matches(scope)[0] is not Match.NONE), None)
    return getattr(route, "path", "unmatched")
