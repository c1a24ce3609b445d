"""`POST /tokenize` and `/detokenize`: the student's own tokenizer, with the bodies that vLLM uses."""

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter
from server.api.handler import Handler
from server.context import Context, run_in_thread_if_long
from server.generation.limits import read_json_body
from server.generation.prompts import check_token_ids, encode_messages, encode_text
from server.students.student import ServedStudent, find_student
from server.wire.decode import decode_body
from server.wire.replies import json_response
from server.wire.tokens import (
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    detokenize_decoder,
    tokenize_decoder,
)


def tokenize_handler(context: Context) -> Handler:
    async def tokenize(request: Request) -> Response:
        body = decode_body(await read_json_body(request, context), tokenize_decoder)
        student = find_student(context.students, body.model)
        tokens = await _encode(student, body)
        texts = None
        if body.return_token_strs:
            texts = [student.tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
        return json_response(
            TokenizeResponse(
                count=len(tokens),
                max_model_len=student.max_context_tokens,
                tokens=list(tokens),
                token_strs=texts,
            )
        )

    return tokenize


async def _encode(student: ServedStudent, body: TokenizeRequest) -> tuple[int, ...]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidParameter("send either `prompt` or `messages`", param="prompt")
    if body.messages is not None:
        return await encode_messages(student, body.messages, add_generation_prompt=body.add_generation_prompt)
    assert body.prompt is not None
    return await encode_text(student, body.prompt, add_special=body.add_special_tokens)


def detokenize_handler(context: Context) -> Handler:
    async def detokenize(request: Request) -> Response:
        body = decode_body(await read_json_body(request, context), detokenize_decoder)
        student = find_student(context.students, body.model)
        ids = check_token_ids(student, body.tokens, "tokens")
        tokenizer = student.tokenizer
        text = await run_in_thread_if_long(len(ids), lambda: tokenizer.decode(ids, skip_special=False))
        return json_response(DetokenizeResponse(prompt=text))

    return detokenize
