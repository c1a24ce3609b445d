"""`POST /v1/route`: where a request would go and why, without generating anything."""

import asyncio

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter
from router.classifier.explanation import explain
from router.decision import RouteDecision, RoutePreferences, TaskScores
from server.api.charge import charged
from server.api.chat import ChatOrder
from server.api.completions import CompletionOrder
from server.api.handler import Handler, read_order
from server.context import Context
from server.generation.envelope import Envelope
from server.generation.routing import Order, Routed, route
from server.telemetry.request_record import record_of
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest
from server.wire.replies import json_response
from server.wire.status import RouteReply, RouteRequest, TargetReply, WordReply, route_decoder


def route_handler(context: Context) -> Handler:
    async def create_route(request: Request) -> Response:
        explains = False

        def read(context: Context, body: RouteRequest, preferences: RoutePreferences, envelope: Envelope) -> Order:
            nonlocal explains
            explains = body.explain is True
            return order_of(context, body, preferences, envelope)

        record, order = record_of(request.scope), await read_order(request, context, route_decoder, read)
        with charged(record, order.envelope.num_bytes) as charge:
            routed = await route(context, order)
            charge.num_tokens = sum(prompt.num_tokens for prompt in routed.prompts)
        record.begin(routed.decision, routed.target)
        reply = _describe(routed)
        return json_response(replace(reply, words=await _words(context, order, routed)) if explains else reply)

    return create_route


def order_of(context: Context, body: RouteRequest, preferences: RoutePreferences, envelope: Envelope) -> Order:
    """The chat or text completion whose route is asked for. Raises: BadRequest and its kinds."""
    if body.messages is not None and body.prompt is None:
        chat = ChatRequest(
            model=body.model,
            messages=body.messages,
            tools=body.tools,
            tool_choice=body.tool_choice,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            chat_template_kwargs=body.chat_template_kwargs,
            reasoning_effort=body.reasoning_effort,
            fenhe=body.fenhe,
        )
        return ChatOrder(context, chat, preferences, envelope)
    if body.prompt is not None and body.messages is None:
        completion = CompletionRequest(model=body.model, prompt=body.prompt, fenhe=body.fenhe)
        return CompletionOrder(context, completion, preferences, envelope)
    raise InvalidParameter("send either `prompt` or `messages`", param="prompt")


async def _words(context: Context, order: Order, routed: Routed) -> list[WordReply]:
    """Empty where nothing was classified, and for several prompts."""
    conversations = await order.conversations()
    if routed.scores is None or len(conversations) != 1:
        return []
    pulls = await asyncio.to_thread(explain, context.router.classify, conversations[0], routed.scores)
    return [WordReply(start=one.start, end=one.end, pull=round(one.pull, 4), task=one.task) for one in pulls]


def _describe(routed: Routed) -> RouteReply:
    num_tokens = routed.prompts[0].num_tokens
    return describe_route(routed.decision, routed.scores, num_tokens, routed.seconds)


def describe_route(
    decision: RouteDecision, scores: TaskScores | None, num_prompt_tokens: int, seconds: float
) -> RouteReply:
    """`seconds` is the time of classifying and deciding."""
    return RouteReply(
        student=decision.student,
        path=decision.path,
        head=decision.head,
        task=decision.task,
        language=decision.language,
        confidence=decision.confidence,
        reason=decision.reason,
        probabilities=None if scores is None else scores.probabilities,
        num_prompt_tokens=num_prompt_tokens,
        fallbacks=[
            TargetReply(student=target.student, path=target.path, head=target.head) for target in decision.fallbacks
        ],
        skipped=decision.skipped,
        decision_us=round(seconds * 1e6, 1),
    )
