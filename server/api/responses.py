"""`POST /v1/responses`, the stateless part: a chat completion under the names of the newer API."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from models.errors import BadRequest, InvalidParameter, UnsupportedField
from router.conversation import Conversation
from router.decision import RoutePreferences
from server.api.chat import ChatOrder
from server.api.handler import Handler, read_order
from server.api.responses_body import ResponseBodyWriter
from server.context import Context
from server.generation.answer import answer
from server.generation.loosened import renamed
from server.generation.plan import Plan
from server.generation.prompts import Prompt
from server.generation.routing import Envelope, Routed
from server.students.student import ServedStudent
from server.wire.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat, Message, NamedSchema, ResponseFormat
from server.wire.responses import LOGPROBS, InputItem, RefusalInput, ResponseRequest, response_decoder

NAMES = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
"""What fields of a chat completion are called here; `messages` and everything in them are `input`."""


def response_handler(context: Context) -> Handler:
    async def create_response(request: Request) -> Response:
        order = await read_order(request, context, response_decoder, ResponseOrder)
        with _own_names():
            return await answer(context, order, request)

    return create_response


class ResponseOrder:
    """One response to be routed and planned: the order of a chat completion, with bodies of its own."""

    def __init__(
        self,
        context: Context,
        body: ResponseRequest,
        preferences: RoutePreferences,
        envelope: Envelope,
    ) -> None:
        """Raises: BadRequest and its kinds."""
        _refuse(body)
        self._body = body
        self.envelope = envelope
        with _own_names():
            self._chat = ChatOrder(context, chat_request(body), preferences, envelope)
        self.preferences = preferences

    async def conversations(self) -> list[Conversation]:
        return await self._chat.conversations()

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        return await self._chat.encode(student)

    def plan(self, routed: Routed) -> Plan:
        plan = self._chat.plan(routed)
        job = replace(plan.job, id=f"resp_{self.envelope.key}", created=int(time.time()), includes_usage=True, done=b"")
        writer = ResponseBodyWriter(job, self._body, self.envelope.key)
        return replace(plan, job=job, writer=writer, loosened=renamed(plan.loosened, NAMES))


def _refuse(body: ResponseRequest) -> None:
    """Raises: InvalidParameter, UnsupportedField."""
    if body.store:
        raise InvalidParameter(
            "`store`: nothing is stored by this server; send false, and the conversation in `input`", param="store"
        )
    if body.tools or body.tool_choice not in (None, "auto", "none"):
        param = "tools" if body.tools else "tool_choice"
        raise UnsupportedField(f"`{param}` is not supported in /v1/responses; use /v1/chat/completions", param=param)
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        name = "stream_options.include_obfuscation"
        raise UnsupportedField(f"`{name}` is not supported by this server; leave it out", param=name)
    if body.top_logprobs and LOGPROBS not in (body.include or ()):
        raise InvalidParameter(f"`top_logprobs` needs `include: [{LOGPROBS!r}]`", param="top_logprobs")


def chat_request(body: ResponseRequest) -> ChatRequest:
    """The chat completion that makes the response."""
    has_logprobs = LOGPROBS in (body.include or ())
    return ChatRequest(
        model=body.model,
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stream=body.stream,
        logprobs=has_logprobs or None,
        top_logprobs=body.top_logprobs if has_logprobs else None,
        response_format=_format(body),
        fenhe=body.fenhe,
    )


def _format(body: ResponseRequest) -> ResponseFormat | None:
    """Raises: InvalidParameter for a schema without a name, or the other way round."""
    wanted = None if body.text is None else body.text.format
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


def _messages(body: ResponseRequest) -> list[Message]:
    """Source: OpenAI API reference, responses: `instructions` are a system message before everything else."""
    messages = [] if body.instructions is None else [Message(role="system", content=body.instructions)]
    if isinstance(body.input, str):
        return [*messages, Message(role="user", content=body.input)]
    return messages + [Message(role=item.role, content=_text(item)) for item in body.input]


def _text(item: InputItem) -> str:
    if isinstance(item.content, str):
        return item.content
    return "\n".join(part.refusal if isinstance(part, RefusalInput) else part.text for part in item.content)


@contextlib.contextmanager
def _own_names() -> Iterator[None]:
    """In refusals, name fields as this API does."""
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
