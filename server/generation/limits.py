"""Bounds of a request: the size and kind of its body before it is parsed, its tokens before it is queued."""

import asyncio
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from models.errors import BadRequest, ContextTooLong, InvalidParameter, QueueFull
from server.context import Context
from server.settings.config import Limits
from server.students.event_bridge import ClientGone
from server.students.student import ServedStudent
from server.telemetry.request_record import record_of
from server.wire.base import RequestBody
from server.wire.content_coding import CODINGS, codings_in, inflate
from server.wire.decode import decode_body
from server.wire.ignored import Ignored
from server.wire.json_shape import check_shape

W = TypeVar("W", bound=RequestBody)


async def read_json_body(request: Request, context: Context) -> bytes:
    """The whole body, decoded from its content coding and unchecked.

    Raises: HTTPException 408, 413 or 415; BadRequest; ClientGone.
    """
    limits = context.config.limits
    _check_kind(request)
    coding = _coding_of(request)
    _check_announced_length(request, limits.max_body_bytes)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            body = await _read(request, limits.max_body_bytes)
    except TimeoutError:
        raise HTTPException(
            408, f"the body did not arrive within {limits.body_timeout_s:g} s (limits.body_timeout_s)"
        ) from None
    return body if coding is None else await _decode(body, coding, limits.max_body_bytes)


def decode_json(body: bytes, decoder: msgspec.json.Decoder[W], context: Context, request_id: str) -> W:
    """Also reports what was ignored of the body.

    Raises: BadRequest, UnsupportedField, InvalidParameter; each names the field or the limit.
    """
    limits, ignored = context.config.limits, Ignored()
    check_shape(body, max_depth=limits.max_json_depth, max_nodes=limits.max_json_nodes)
    decoded = decode_body(body, decoder, ignored)
    context.metrics.ignored.report(ignored, request_id)
    return decoded


async def read_struct(request: Request, context: Context, decoder: msgspec.json.Decoder[W]) -> W:
    """The whole body, decoded, beside the loop if it is long.

    Raises: what `read_json_body` and `decode_json` raise.
    """
    body, record = await read_json_body(request, context), record_of(request.scope)
    return await context.long_work.run(len(body), lambda: decode_json(body, decoder, context, record.id), record.tenant)


def _check_kind(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        found = f"not {kind[:100]!r}" if kind else "and there is none"
        raise HTTPException(415, f"the content-type must be application/json, {found}", {"accept": "application/json"})


def _coding_of(request: Request) -> str | None:
    """The content coding of the body. Raises: HTTPException 415 that names one that cannot be decoded."""
    codings = codings_in(request.headers.getlist("content-encoding"))
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in CODINGS:
        supported = ", ".join(CODINGS)
        raise HTTPException(
            415,
            f"the content-encoding {', '.join(codings)[:100]!r} is not supported: send the body as it is, or in one of "
            f"{supported}",
            {"accept-encoding": supported},  # RFC 9110 15.5.16
        )
    return codings[0]


def _check_announced_length(request: Request, max_bytes: int) -> None:
    announced = request.headers.get("content-length")
    if announced is None:
        return
    if not (announced.isascii() and announced.isdigit()):
        raise BadRequest("the content-length is not a number")
    digits = announced.lstrip("0")
    if len(digits) > len(str(max_bytes)) or int(digits or "0") > max_bytes:  # int() refuses very long numbers
        raise _too_large(max_bytes)


async def _read(request: Request, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _decode(body: bytes, coding: str, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    for part in inflate(body, coding):
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        await asyncio.sleep(0)  # others run between two pieces
    return b"".join(parts)


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {max_bytes} bytes (limits.max_body_bytes)")


def check_room(context: Context) -> None:
    """Raises: QueueFull when `limits.max_requests` requests are being answered or wait for their turn."""
    num_streams = context.num_streams
    if num_streams >= context.config.limits.max_requests:
        raise QueueFull(
            f"{num_streams} requests are open (limits.max_requests); try again later",
            retry_after_s=1.0,
        )


def check_choices(context: Context, num_prompts: int, n: int) -> None:
    """Raises: InvalidParameter when a request has more prompts, or sequences, than may ever run together."""
    max_prompts, max_running = context.config.limits.max_prompts, context.config.engine.max_running
    if num_prompts > max_prompts:
        raise InvalidParameter(
            f"{num_prompts} prompts are more than {max_prompts} (limits.max_prompts)", param="prompt"
        )
    if n * num_prompts > max_running:
        raise InvalidParameter(
            f"{n} choices of {num_prompts} prompts exceed {max_running} sequences (engine.max_running)",
            param="n",
        )


def max_prompt_tokens(limits: Limits, student: ServedStudent) -> int:
    """The longest prompt that leaves room for an answer."""
    max_context = student.max_context_tokens
    return min(limits.max_prompt_tokens or max_context, max_context - 1)


def prompt_too_long(student: ServedStudent, count: str, max_tokens: int, param: str) -> ContextTooLong:
    """`count` says how many tokens the prompt has, perhaps `at least` so many. Clients look for both phrases, and send
    a shorter conversation.

    Source: error messages of the OpenAI and the Anthropic API for a prompt that exceeds the context.
    """
    max_context = student.max_context_tokens
    setting = "" if max_tokens == max_context - 1 else " (limits.max_prompt_tokens)"
    return ContextTooLong(
        f"prompt is too long: {count.removeprefix('at least ')} tokens > {max_tokens} maximum{setting}. This model's "
        f"maximum context length is {max_context} tokens. However, your prompt has {count} tokens; shorten it",
        param=param,
    )


def answer_tokens(
    limits: Limits, student: ServedStudent, num_prompt_tokens: int, wanted: int | None, param: str
) -> int:
    """How many tokens the answer may have: what was asked for (None: no bound), as far as the context and the settings
    have room for it.

    Source: vLLM, `get_max_tokens`: the least of what was asked for, what the context leaves and what the server allows.
    Raises: ContextTooLong for a prompt that does not fit.
    """
    max_prompt = max_prompt_tokens(limits, student)
    if num_prompt_tokens > max_prompt:
        raise prompt_too_long(student, str(num_prompt_tokens), max_prompt, param)
    bounds = (student.max_context_tokens - num_prompt_tokens, limits.max_completion_tokens, wanted)
    return min(bound for bound in bounds if bound is not None)
