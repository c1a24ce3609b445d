"""`POST /v1/responses`, the stateless part: a chat completion asked for, and told, in the newer API's words."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from models.errors import BadRequest, InvalidParameter, UnsupportedField
from router.conversation import Conversation
from router.decision import Target, Wishes
from server.api.chat import ChatOrder, Handler
from server.api.responses_body import ResponseShape
from server.context import Context
from server.generation.answer import answer
from server.generation.limits import read_json_body
from server.generation.plan import Plan
from server.generation.preferences import TASK_HEADER, wishes_of
from server.generation.prompts import Prompt
from server.students.student import ServedStudent
from server.telemetry.request_record import record_of
from server.wire.decode import decode_body
from server.wire.responses import LOGPROBS, InputItem, RefusalInput, ResponseRequest, response_decoder
from server.wire.schema import ChatRequest, JsonObjectFormat, JsonSchemaFormat, Message, NamedSchema, ResponseFormat

NAMES = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
"""What a field of a chat completion is called here; `messages` and all in them are `input`."""


def response_handler(context: Context) -> Handler:
    async def create_response(request: Request) -> Response:
        wish = decode_body(await read_json_body(request, context), response_decoder)
        wishes = wishes_of(context.students, wish.model, wish.fenhe, request.headers.getlist(TASK_HEADER))
        order = ResponseOrder(context, wish, wishes, record_of(request.scope).key)
        with _own_names():
            return await answer(context, order)

    return create_response


class ResponseOrder:
    """One response to be routed and planned: the order of a chat completion, with bodies of its own."""

    def __init__(self, context: Context, wish: ResponseRequest, wishes: Wishes, key: str) -> None:
        """Raises: BadRequest and its kinds."""
        _refuse(wish)
        self._wish = wish
        self._key = key
        with _own_names():
            self._chat = ChatOrder(context, chat_wish(wish), wishes, key)

    @property
    def wishes(self) -> Wishes:
        return self._chat.wishes

    async def conversations(self) -> list[Conversation]:
        return await self._chat.conversations()

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        return await self._chat.encode(student)

    def plan(self, target: Target, student: ServedStudent, prompts: list[Prompt]) -> Plan:
        plan = self._chat.plan(target, student, prompts)
        job = replace(plan.job, id=f"resp_{self._key}", created=int(time.time()), includes_usage=True, done=b"")
        return replace(plan, job=job, shape=ResponseShape(job, self._wish, self._key))


def _refuse(wish: ResponseRequest) -> None:
    """Raises: InvalidParameter, UnsupportedField."""
    if wish.store:
        raise InvalidParameter(
            "`store`: nothing is stored by this server; send false, and the conversation in `input`", param="store"
        )
    if wish.tools or wish.tool_choice not in (None, "auto", "none"):
        param = "tools" if wish.tools else "tool_choice"
        raise UnsupportedField(f"`{param}` is not supported in /v1/responses; use /v1/chat/completions", param=param)
    if wish.stream_options is not None and wish.stream_options.include_obfuscation:
        name = "stream_options.include_obfuscation"
        raise UnsupportedField(f"`{name}` is not supported by this server; leave it out", param=name)
    if wish.top_logprobs and LOGPROBS not in (wish.include or ()):
        raise InvalidParameter(f"`top_logprobs` needs `include: [{LOGPROBS!r}]`", param="top_logprobs")


def chat_wish(wish: ResponseRequest) -> ChatRequest:
    """The chat completion that a response is."""
    has_logprobs = LOGPROBS in (wish.include or ())
    return ChatRequest(
        model=wish.model,
        messages=_messages(wish),
        max_completion_tokens=wish.max_output_tokens,
        temperature=wish.temperature,
        top_p=wish.top_p,
        stream=wish.stream,
        logprobs=has_logprobs or None,
        top_logprobs=wish.top_logprobs if has_logprobs else None,
        response_format=_format(wish),
        fenhe=wish.fenhe,
    )


def _format(wish: ResponseRequest) -> ResponseFormat | None:
    """Raises: InvalidParameter for a schema without a name, or the other way round."""
    wanted = None if wish.text is None else wish.text.format
    if wanted is None:
        return None
    details = (wanted.name, wanted.schema, wanted.strict, wanted.description)
    if wanted.type == "json_schema":
        if wanted.name is None or wanted.schema is None:
            param = "text.format.name" if wanted.name is None else "text.format.schema"
            raise InvalidParameter(f"`{param}` is required", param=param)
        named = NamedSchema(
            name=wanted.name, schema=wanted.schema, strict=wanted.strict, description=wanted.description
        )
        return JsonSchemaFormat(json_schema=named)
    if any(detail is not None for detail in details):
        raise InvalidParameter(f"`text.format`: {wanted.type!r} has nothing but its type", param="text.format")
    return JsonObjectFormat() if wanted.type == "json_object" else None


def _messages(wish: ResponseRequest) -> list[Message]:
    """Source: OpenAI API reference, responses: `instructions` are a system message before everything else."""
    messages = [] if wish.instructions is None else [Message(role="system", content=wish.instructions)]
    if isinstance(wish.input, str):
        return [*messages, Message(role="user", content=wish.input)]
    return messages + [Message(role=item.role, content=_text(item)) for item in wish.input]


def _text(item: InputItem) -> str:
    if isinstance(item.content, str):
        return item.content
    return "\n".join(part.refusal if isinstance(part, RefusalInput) else part.text for part in item.content)


@contextlib.contextmanager
def _own_names() -> Iterator[None]:
    """Name fields as this API does in what is refused."""
    try:
        yield
    except BadRequest as error:
        if error.param is not None and error.param.startswith("messages"):
            error.param = "input"
        for theirs, ours in NAMES.items():
            error.message = error.message.replace(f"`{theirs}", f"`{ours}")
            if error.param is not None and error.param.startswith(theirs):
                error.param = ours + error.param.removeprefix(theirs)
        raise
