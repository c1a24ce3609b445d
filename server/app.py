"""The ASGI application of one server: its routes, its middleware, and the start and stop of its engines."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from functools import cache

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.access.keys import PAGE_FILES, PAGE_PATH
from server.access.rate_limit import RATE_LIMIT_HEADERS
from server.api.console_page import page_handler, read_page
from server.api.endpoints import ENDPOINTS
from server.api.handler import Handler
from server.api.openapi import openapi_document
from server.context import Context
from server.generation.delivery import ANSWER_HEADERS
from server.http.addresses import allowed_methods
from server.http.middleware import RequestMiddleware
from server.lifecycle.student_changes import StudentChanges
from server.telemetry.request_record import record_of
from server.telemetry.tracing import Tracing
from server.threads import run_in_daemon_thread
from server.wire import errors
from server.wire.message_errors import error_body_at
from server.wire.replies import raw_json_response

logger = logging.getLogger(__name__)

TRACING_CLOSE_S = 4.0


def create_app(context: Context) -> Starlette:
    """Handlers get what they need from `context`. Engines start and stop with the application."""
    changes = StudentChanges(context)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        context.attach()
        scoring = asyncio.get_running_loop().create_task(context.scorer.run())
        try:
            yield
        finally:
            scoring.cancel()
            await changes.close()
            await context.stop_engines()
            await context.cache.close()
            if context.tracing is not None:
                await _close(context.tracing)
            logger.info("engines stopped students=%s", [student.name for student in context.students])

    app = Starlette(
        routes=_routes(context, changes),
        lifespan=lifespan,
        middleware=[*_cors(context.config.cors.origins), Middleware(RequestMiddleware, context=context)],
        exception_handlers={HTTPException: answer_http_error},
    )
    app.router.redirect_slashes = False  # `plain_path` has taken them away
    return app


def _routes(context: Context, changes: StudentChanges) -> list[Route]:
    page = page_handler(context, read_page())
    return [
        *(_route(one.method, one.route or one.path, one.make_handler(context, changes)) for one in ENDPOINTS),
        _route("get", "/openapi.json", _openapi_handler(context)),
        *(_route("get", path, page) for path in (PAGE_PATH, f"{PAGE_FILES}{{name}}")),
    ]


def _route(method: str, path: str, handler: Handler) -> Route:
    return Route(path, handler, methods=[method.upper()])  # GET brings HEAD with it (RFC 9110 9.1)


async def _close(tracing: Tracing) -> None:
    """Send the traces that are left; a collector that does not answer must not hold up the end of the process."""
    try:
        await asyncio.wait_for(run_in_daemon_thread(tracing.close), TRACING_CLOSE_S)
    except TimeoutError:
        logger.warning("tracing not closed seconds=%g: the collector does not answer", TRACING_CLOSE_S)
    except Exception:
        logger.exception("tracing failed at the end")


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """Outermost, so that pages can read errors too. Keys come in a header, never in cookies."""
    if not origins:
        return []
    exposed = ["x-request-id", "retry-after", "retry-after-ms", *RATE_LIMIT_HEADERS, *ANSWER_HEADERS]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=exposed,
        )
    ]


def _openapi_handler(context: Context) -> Handler:
    @cache
    def document() -> bytes:
        """Made when it is first asked for, which few servers are: it takes longer than all else here."""
        return msgspec.json.encode(openapi_document(context.version))

    async def openapi(request: Request) -> Response:
        return raw_json_response(await run_in_daemon_thread(document), 200)

    return openapi


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Unknown routes, wrong methods and refused bodies get the same body as any other error. OPTIONS, which no route
    has, gets the methods of its address."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    if request.method == "OPTIONS" and (methods := allowed_methods(request.app.routes, request.scope)):
        return Response(status_code=204, headers={"allow": ", ".join(methods)})
    message = _route_message(request, status) or error.detail
    code = record_of(request.scope).error = errors.ROUTE_CODES.get(status, "http_error")
    body = error_body_at(request.scope["path"], message, status, code, request_id=record_of(request.scope).id)
    return raw_json_response(body, status, _error_headers(request, error))


def _error_headers(request: Request, error: HTTPException) -> list[tuple[bytes, bytes]]:
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:  # the routes' own header has the methods of the first that fits
        headers["allow"] = ", ".join(allowed_methods(request.app.routes, request.scope))
    if error.status_code in {408, 413, 415}:
        headers["connection"] = "close"  # what is left of the body is not read
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _route_message(request: Request, status: int) -> str | None:
    what = f"{request.method} {request.scope['path'][:200]}"
    return {
        404: f"there is no {what} here",
        405: f"{what} is not allowed; the allow header lists what is",
    }.get(status)
