"""What handlers have in common: their type, and how those that route a request read it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from models.errors import BadRequest
from router.decision import RoutePreferences
from server.api.remote_order import RemoteOrder, is_for_remote, options_in
from server.context import Context
from server.generation.envelope import Envelope
from server.generation.limits import decode_json, read_json_body
from server.generation.preferences import TASK_HEADER, preferences_of
from server.generation.remote import ORIGIN_HEADERS
from server.generation.remote_body import ID_PREFIX, fields_of, model_in
from server.generation.routing import Order
from server.telemetry.request_record import record_of
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest
from server.wire.json_shape import check_shape
from server.wire.messages import MessageRequest
from server.wire.responses import ResponseRequest
from server.wire.status import RouteRequest

PREFIX = "/v1/"

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
) -> OrderT | RemoteOrder:
    """Read a request that is to be routed, beside the loop if it is long. `stands_for` says which model is meant.

    Raises: HTTPException 408, 413 or 415; BadRequest and its kinds; UnknownModel; ClientGone.
    """
    raw = await read_json_body(request, context)
    record = record_of(request.scope)
    envelope = Envelope(
        key=record.key,
        request_id=record.id,
        tenant=record.tenant,
        num_bytes=len(raw),
        raw=raw if any(student.remote for student in context.students) else b"",
        endpoint=request.scope["path"].removeprefix(PREFIX),
        headers={name: request.headers[name] for name in ORIGIN_HEADERS if name in request.headers},
    )
    tasks = request.headers.getlist(TASK_HEADER)

    def read() -> OrderT | RemoteOrder:
        remote = _read_remote(context, envelope, tasks, stands_for)
        if remote is not None:
            return remote
        body = decode_json(raw, decoder, context, record.id)
        preferences = preferences_of(context.students, stands_for(context, body.model), body.fenhe, tasks)
        return make_order(context, body, preferences, envelope)

    return await context.long_work.run(len(raw), read, record.tenant)


def _read_remote(
    context: Context, envelope: Envelope, tasks: Sequence[str], stands_for: Callable[[Context, str], str]
) -> RemoteOrder | None:
    """The order of a request that only remote students can answer. Raises: BadRequest and its kinds; UnknownModel."""
    if not envelope.raw or envelope.endpoint not in ID_PREFIX:
        return None
    limits = context.config.limits
    check_shape(envelope.raw, max_depth=limits.max_json_depth, max_nodes=limits.max_json_nodes)
    try:
        fields = fields_of(envelope.raw)
        model = stands_for(context, model_in(fields))
    except BadRequest:  # the typed decoder says better what is wrong
        return None
    if not is_for_remote(context, envelope.endpoint, model):
        return None
    preferences = preferences_of(context.students, model, options_in(fields), tasks)
    return RemoteOrder(context, fields, preferences, envelope)
