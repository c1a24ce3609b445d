"""What handlers have in common: their type, and how those that route a request read it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.decision import RoutePreferences
from server.context import Context
from server.generation.limits import decode_json, read_json_body
from server.generation.preferences import TASK_HEADER, preferences_of
from server.generation.routing import Envelope, Order
from server.telemetry.request_record import record_of
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest
from server.wire.messages import MessageRequest
from server.wire.responses import ResponseRequest
from server.wire.status import RouteRequest

Handler = Callable[[Request], Awaitable[Response]]

Body = TypeVar("Body", ChatRequest, CompletionRequest, ResponseRequest, RouteRequest, MessageRequest)
OrderT = TypeVar("OrderT", bound=Order)


def _itself(context: Context, model: str) -> str:
    return model


async def read_order(
    request: Request,
    context: Context,
    decoder: msgspec.json.Decoder[Body],
    make_order: Callable[[Context, Body, RoutePreferences, Envelope], OrderT],
    stands_for: Callable[[Context, str], str] = _itself,
) -> OrderT:
    """Read a request that is to be routed, beside the loop if it is long. `stands_for` says which model is meant.

    Raises: HTTPException 408, 413 or 415; BadRequest and its kinds; UnknownModel; ClientGone.
    """
    raw = await read_json_body(request, context)
    record = record_of(request.scope)
    envelope = Envelope(key=record.key, request_id=record.id, tenant=record.tenant, num_bytes=len(raw))

    def read() -> OrderT:
        body = decode_json(raw, decoder, context, record.id)
        model, tasks = stands_for(context, body.model), request.headers.getlist(TASK_HEADER)
        preferences = preferences_of(context.students, model, body.fenhe, tasks)
        return make_order(context, body, preferences, envelope)

    return await context.long_work.run(len(raw), read, record.tenant)
