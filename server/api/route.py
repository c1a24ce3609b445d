"""`POST /v1/route`: where a request would go and why, without generating anything."""

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter
from router.conversation import Conversation
from router.decision import RoutePreferences
from server.api.chat import Handler
from server.context import Context
from server.generation.limits import check_choices, read_json_body
from server.generation.preferences import TASK_HEADER, preferences_of, wishes_for_prompts
from server.generation.prompts import Prompt, conversation_in, encode_messages, encode_prompt, prompt_text, split_prompt
from server.generation.routing import Routed, route
from server.students.student import ServedStudent, find_student
from server.telemetry.request_record import record_of
from server.wire.chat import Message
from server.wire.decode import decode_body
from server.wire.replies import json_response
from server.wire.status import RouteReply, RouteRequest, TargetReply, route_decoder


def route_handler(context: Context) -> Handler:
    async def create_route(request: Request) -> Response:
        body = decode_body(await read_json_body(request, context), route_decoder)
        preferences = preferences_of(context.students, body.model, body.fenhe, request.headers.getlist(TASK_HEADER))
        routed = await route(context, _question(context, body, preferences))
        record_of(request.scope).begin(routed.decision, routed.decision.target)
        return json_response(describe_route(routed))

    return create_route


def _question(context: Context, body: RouteRequest, preferences: RoutePreferences) -> "ChatQuestion | TextQuestion":
    if body.messages is not None and body.prompt is None:
        return ChatQuestion(preferences, body.messages)
    if body.prompt is not None and body.messages is None:
        return TextQuestion(context, preferences, body)
    raise InvalidParameter("send either `prompt` or `messages`", param="prompt")


class ChatQuestion:
    def __init__(self, preferences: RoutePreferences, messages: list[Message]) -> None:
        self.preferences = preferences
        self._messages = messages

    async def conversations(self) -> list[Conversation]:
        return [conversation_in(self._messages)]

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        return [Prompt(token_ids=await encode_messages(student, self._messages))]


class TextQuestion:
    def __init__(self, context: Context, preferences: RoutePreferences, body: RouteRequest) -> None:
        assert body.prompt is not None
        self._context = context
        self._model = body.model
        self._prompts = split_prompt(body.prompt)
        check_choices(context, len(self._prompts), 1)
        self.preferences = wishes_for_prompts(context.students, preferences, self._prompts)

    async def conversations(self) -> list[Conversation]:
        student = find_student(self._context.students, self._model)
        return [Conversation(last=await prompt_text(student, prompt)) for prompt in self._prompts]

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        return [await encode_prompt(student, prompt) for prompt in self._prompts]


def describe_route(routed: Routed) -> RouteReply:
    decision, scores = routed.decision, routed.scores
    return RouteReply(
        student=decision.student,
        path=decision.path,
        task=decision.task,
        confidence=decision.confidence,
        reason=decision.reason,
        probabilities=None if scores is None else scores.probabilities,
        num_prompt_tokens=len(routed.prompts[0].token_ids),
        fallbacks=[TargetReply(student=target.student, path=target.path) for target in decision.fallbacks],
        skipped=decision.skipped,
        decision_us=round(routed.seconds * 1e6, 1),
    )
