"""`POST /v1/responses`, the stateless part: a chat completion under the names of the newer API."""

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter
from router.decision import RoutePreferences
from server.api.field_names import FieldNames
from server.api.handler import Handler, read_order
from server.api.response_turns import choice_of, messages_of, tools_of
from server.api.responses_body import ResponseBodyWriter
from server.api.translated_order import TranslatedOrder
from server.api.turns import Tools, require_messages
from server.context import Context
from server.generation.answer import answer
from server.generation.envelope import Envelope
from server.generation.plan import Plan
from server.generation.routing import Routed
from server.wire.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat, Message, NamedSchema, ResponseFormat
from server.wire.responses import LOGPROBS, ResponseRequest, response_decoder

NAMES = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tool_choice.function.name": "tool_choice.name",
    "messages": "input",
}
"""What fields of a chat completion are called here."""


def response_handler(context: Context) -> Handler:
    async def create_response(request: Request) -> Response:
        return await answer(context, await read_order(request, context, response_decoder, ResponseOrder), request)

    return create_response


class ResponseOrder(TranslatedOrder):
    """One response to be routed and planned: the order of a chat completion, with bodies of its own."""

    def __init__(
        self,
        context: Context,
        body: ResponseRequest,
        preferences: RoutePreferences,
        envelope: Envelope,
    ) -> None:
        """Raises: BadRequest and its kinds."""
        if body.top_logprobs and LOGPROBS not in (body.include or ()):
            raise InvalidParameter(f"`top_logprobs` needs `include: [{LOGPROBS!r}]`", param="top_logprobs")
        self._body = body
        named, self._tools = messages_of(body), tools_of(body.tools or (), body.tool_choice)
        chat = chat_request(body, require_messages(named, "input"), self._tools)
        fields = [one.field for one in named]
        names = FieldNames(names=NAMES, messages=fields, tools=self._tools.fields, schema=".parameters")
        super().__init__(context, chat, names, preferences, envelope)

    def plan(self, routed: Routed) -> Plan:
        plan = super().plan(routed)
        job = replace(plan.job, id=f"resp_{self.envelope.key}")
        writer = ResponseBodyWriter(
            job, self._body, self.envelope.key, tools=self._tools, reads_calls=self._chat.reads_calls
        )
        return replace(plan, job=job, writer=writer)


def chat_request(body: ResponseRequest, messages: list[Message], tools: Tools) -> ChatRequest:
    """The chat completion that makes the response."""
    has_logprobs = LOGPROBS in (body.include or ())
    return ChatRequest(
        model=body.model,
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stream=body.stream,
        logprobs=has_logprobs or None,
        top_logprobs=body.top_logprobs if has_logprobs else None,
        response_format=_format(body),
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        tools=tools.tools or None,
        tool_choice=choice_of(body, tools),
        parallel_tool_calls=body.parallel_tool_calls,
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
