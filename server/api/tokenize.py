"""`POST /tokenize` and `/detokenize`: the student's own tokenizer, in the shapes vLLM uses."""

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter
from server.api.chat import Handler
from server.context import Context, run_beside
from server.generation.limits import read_json_body
from server.generation.prompts import check_token_ids, encode_messages, encode_text
from server.students.student import ServedStudent, find_student
from server.wire.decode import decode_body
from server.wire.replies import json_response
from server.wire.schema import (
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    detokenize_decoder,
    tokenize_decoder,
)


def tokenize_handler(context: Context) -> Handler:
    async def tokenize(request: Request) -> Response:
        wish = decode_body(await read_json_body(request, context), tokenize_decoder)
        student = find_student(context.students, wish.model)
        tokens = await _encode(student, wish)
        texts = None
        if wish.return_token_strs:
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


async def _encode(student: ServedStudent, wish: TokenizeRequest) -> tuple[int, ...]:
    if (wish.prompt is None) == (wish.messages is None):
        raise InvalidParameter("send either `prompt` or `messages`", param="prompt")
    if wish.messages is not None:
        return await encode_messages(student, wish.messages, add_generation_prompt=wish.add_generation_prompt)
    assert wish.prompt is not None
    return await encode_text(student, wish.prompt, add_special=wish.add_special_tokens)


def detokenize_handler(context: Context) -> Handler:
    async def detokenize(request: Request) -> Response:
        wish = decode_body(await read_json_body(request, context), detokenize_decoder)
        student = find_student(context.students, wish.model)
        ids = check_token_ids(student, wish.tokens, "tokens")
        tokenizer = student.tokenizer
        text = await run_beside(len(ids), lambda: tokenizer.decode(ids, skip_special=False))
        return json_response(DetokenizeResponse(prompt=text))

    return detokenize
