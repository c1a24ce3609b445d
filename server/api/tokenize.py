"""`POST /tokenize` and `/detokenize`: the student's own tokenizer, with the bodies that vLLM uses."""

from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter
from server.api.charge import charged
from server.api.handler import Handler
from server.api.logprobs import text_of_bytes
from server.context import Context
from server.generation.cancellation import cancelled_by
from server.generation.limits import decode_json, read_json_body
from server.generation.prompts import check_token_ids, encode_messages
from server.generation.rendering import rendering_of
from server.generation.tools import functions_of
from server.long_work import TEXT_BYTES
from server.students.admission_gate import terms_of
from server.students.student import ServedStudent, find_student
from server.telemetry.request_record import record_of
from server.wire.chat import ChatRequest
from server.wire.replies import json_response
from server.wire.tokens import (
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    detokenize_decoder,
    tokenize_decoder,
)

T = TypeVar("T")


def tokenize_handler(context: Context) -> Handler:
    async def tokenize(request: Request) -> Response:
        raw, record = await read_json_body(request, context), record_of(request.scope)

        def work() -> tuple[int, Response]:
            body = decode_json(raw, tokenize_decoder, context, record.id)
            parses_special = context.config.special_tokens_in_messages
            reply = _tokenized(find_student(context.students, body.model), body, parses_special=parses_special)
            return reply.count, json_response(reply)

        with charged(record, len(raw)) as charge:  # a token has a byte at least
            charge.num_tokens, response = await run_on_text(context, request, len(raw), work)
        return response

    return tokenize


async def run_on_text(context: Context, request: Request, num_bytes: int, work: Callable[[], T]) -> T:
    """Work on text. Raises: ClientGone, DeadlineExceeded; what the work raises."""
    terms = terms_of(record_of(request.scope), None)
    with cancelled_by(request.receive, terms) as cancellation:
        return await cancellation.run(
            context.long_work.run(num_bytes, work, terms.tenant, short_bytes=TEXT_BYTES),
        )


def _tokenized(student: ServedStudent, body: TokenizeRequest, *, parses_special: bool) -> TokenizeResponse:
    tokens, texts = _encode(student, body, parses_special=parses_special), None
    if body.return_token_strs:
        tokenizer = student.tokenizer
        texts = [text_of_bytes(tokenizer.token_bytes(token)) or tokenizer.token_name(token) for token in tokens]
    return TokenizeResponse(
        count=len(tokens), max_model_len=student.max_context_tokens, tokens=list(tokens), token_strs=texts
    )


def _encode(student: ServedStudent, body: TokenizeRequest, *, parses_special: bool) -> tuple[int, ...]:
    """`parses_special` holds for messages: a `prompt` is raw, and what spells a special token in it is one."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidParameter("send either `prompt` or `messages`", param="prompt")
    if body.messages is not None:
        chat = ChatRequest(model=body.model, messages=body.messages, tools=body.tools, tool_choice=body.tool_choice)
        return encode_messages(
            student,
            body.messages,
            functions=functions_of(chat),
            rendering=rendering_of(body, body.messages),
            parses_special=parses_special,
        )
    assert body.prompt is not None
    return tuple(student.tokenizer.encode(body.prompt, add_special=body.add_special_tokens is not False))


def detokenize_handler(context: Context) -> Handler:
    async def detokenize(request: Request) -> Response:
        raw, record = await read_json_body(request, context), record_of(request.scope)

        def work() -> tuple[int, Response]:
            body = decode_json(raw, detokenize_decoder, context, record.id)
            student = find_student(context.students, body.model)
            ids = check_token_ids(student, body.tokens, "tokens")
            return len(ids), json_response(DetokenizeResponse(prompt=student.tokenizer.decode(ids, skip_special=False)))

        with charged(record, len(raw)) as charge:
            charge.num_tokens, response = await run_on_text(context, request, len(raw), work)
        return response

    return detokenize
