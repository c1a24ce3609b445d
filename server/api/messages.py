"""`POST /v1/messages` and `/v1/messages/count_tokens`: a chat completion under the names of Anthropic's API."""

from dataclasses import replace
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter, ThreadNotFound
from router.decision import RoutePreferences
from server.api.charge import charged
from server.api.field_names import FieldNames
from server.api.handler import Handler, read_order
from server.api.message_turns import messages_of, tools_of
from server.api.messages_body import MessageBodyWriter
from server.api.tokenize import run_on_text
from server.api.translated_order import TranslatedOrder
from server.api.turns import Named, Tools, require_messages
from server.context import Context
from server.generation.answer import answer
from server.generation.envelope import Envelope
from server.generation.limits import decode_json, read_json_body
from server.generation.plan import Plan
from server.generation.prompts import encode_messages
from server.generation.rendering import rendering_of
from server.generation.routing import Routed
from server.generation.tools import functions_of
from server.students.student import ServedStudent, find_student
from server.telemetry.request_record import record_of
from server.wire.chat import (
    ChatRequest,
    FunctionName,
    JsonSchemaFormat,
    NamedSchema,
    NamedToolChoice,
)
from server.wire.messages import (
    AnyChoice,
    CountReply,
    CountRequest,
    MessageFields,
    MessageRequest,
    NamedChoice,
    NoneChoice,
    ThreadContinue,
    count_decoder,
    message_decoder,
)
from server.wire.replies import json_response

CLAUDE = "claude-"
NAMES = {
    "max_completion_tokens": "max_tokens",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "tool_choice.function.name": "tool_choice.name",
    "stop": "stop_sequences",
}
"""What fields of a chat completion are called here."""


def message_handler(context: Context) -> Handler:
    async def create_message(request: Request) -> Response:
        order = await read_order(request, context, message_decoder, MessageOrder, stands_for=stands_for)
        return await answer(context, order, request)

    return create_message


def stands_for(context: Context, model: str) -> str:
    """The model id that a request means: one of Anthropic's stands for the one of the settings."""
    is_here = any(model.partition(":")[0] == student.name for student in context.students)
    return context.config.claude_model if model.startswith(CLAUDE) and not is_here else model


class MessageOrder(TranslatedOrder):
    """One message to be routed and planned: the order of a chat completion, with bodies of its own."""

    def __init__(
        self, context: Context, body: MessageRequest, preferences: RoutePreferences, envelope: Envelope
    ) -> None:
        """Raises: BadRequest and its kinds; ThreadNotFound."""
        if isinstance(body.thread, ThreadContinue):
            raise ThreadNotFound(
                "`thread`: nothing is stored by this server; send the whole conversation", param="thread"
            )
        named, self._tools = messages_of(body), tools_of(body.tools or ())
        names = _names(named, self._tools)
        with names.used():
            chat = _chat_request(body, named, self._tools)
        super().__init__(context, chat, names, preferences, envelope)

    def plan(self, routed: Routed) -> Plan:
        plan = super().plan(routed)
        job = replace(plan.job, id=f"msg_{self.envelope.key}")
        writer = MessageBodyWriter(
            job,
            request_id=self.envelope.request_id,
            reads_calls=self._chat.reads_calls,
            left_out=self._tools.left_out,
        )
        return replace(plan, job=job, writer=writer)


def _names(named: list[Named], tools: Tools) -> FieldNames:
    return FieldNames(names=NAMES, messages=[one.field for one in named], tools=tools.fields, schema=".input_schema")


def _chat_request(body: MessageRequest, named: list[Named], tools: Tools) -> ChatRequest:
    """The chat completion that makes the message."""
    choice = body.tool_choice
    is_single = choice is not None and not isinstance(choice, NoneChoice) and choice.disable_parallel_tool_use
    return ChatRequest(
        model=body.model,
        messages=require_messages(named, "messages"),
        max_completion_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences,
        stream=body.stream,
        tools=tools.tools or None,
        tool_choice=_choice(body, tools),
        parallel_tool_calls=False if is_single else None,
        response_format=_format(body),
        fenhe=body.fenhe,
    )


def _choice(body: MessageFields, tools: Tools) -> Literal["none", "required"] | NamedToolChoice | None:
    """Raises: InvalidParameter for a choice of tools where there are none."""
    choice = body.tool_choice
    if isinstance(choice, AnyChoice | NamedChoice):
        tools.require()
    match choice:
        case NoneChoice():
            return "none"
        case AnyChoice():
            return "required"
        case NamedChoice(name=name):
            return NamedToolChoice(function=FunctionName(name=name), type="function")
    return None


def _format(body: MessageFields) -> JsonSchemaFormat | None:
    """Raises: InvalidParameter for two formats."""
    wanted = None if body.output_config is None else body.output_config.format
    if wanted is not None and body.output_format is not None:
        raise InvalidParameter(
            "`output_format` and `output_config.format` are the same field; send one", param="output_format"
        )
    wanted = wanted or body.output_format
    return None if wanted is None else JsonSchemaFormat(json_schema=NamedSchema(name="answer", schema=wanted.schema))


def count_handler(context: Context) -> Handler:
    async def count_tokens(request: Request) -> Response:
        raw, record = await read_json_body(request, context), record_of(request.scope)

        def work() -> int:
            body = decode_json(raw, count_decoder, context, record.id)
            student = find_student(context.students, stands_for(context, body.model))
            return _count(student, body, parses_special=context.config.special_tokens_in_messages)

        with charged(record, len(raw)) as charge:
            charge.num_tokens = await run_on_text(context, request, len(raw), work)
        return json_response(CountReply(input_tokens=charge.num_tokens))

    return count_tokens


def _count(student: ServedStudent, body: CountRequest, *, parses_special: bool) -> int:
    """The tokens of the prompt that a message would have. Raises: BadRequest and its kinds."""
    named, tools = messages_of(body), tools_of(body.tools or ())
    with _names(named, tools).used():
        messages = require_messages(named, "messages")
        chat = ChatRequest(
            model=body.model, messages=messages, tools=tools.tools or None, tool_choice=_choice(body, tools)
        )
        return len(
            encode_messages(
                student,
                messages,
                functions=functions_of(chat),
                rendering=rendering_of(chat, messages),
                parses_special=parses_special,
            )
        )
