"""`POST /v1/route`: where a request would go and why, without generating anything."""

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter
from router.conversation import Conversation
from router.decision import Wishes
from server.api.chat import Handler
from server.context import Context
from server.generation.limits import check_choices, read_json_body
from server.generation.preferences import TASK_HEADER, wishes_for_prompts, wishes_of
from server.generation.prompts import Prompt, conversation_in, encode_messages, encode_prompt, prompt_text, split_prompt
from server.generation.routing import Routed, route
from server.students.student import ServedStudent, find_student
from server.telemetry.request_record import record_of
from server.wire.decode import decode_body
from server.wire.replies import json_response
from server.wire.schema import Message, RouteRequest, route_decoder
from server.wire.status import RouteReply, TargetReply


def route_handler(context: Context) -> Handler:
    async def create_route(request: Request) -> Response:
        wish = decode_body(await read_json_body(request, context), route_decoder)
        wishes = wishes_of(context.students, wish.model, wish.fenhe, request.headers.getlist(TASK_HEADER))
        routed = await route(context, _question(context, wish, wishes))
        record_of(request.scope).begin(routed.decision, routed.decision.target)
        return json_response(describe_route(routed))

    return create_route


def _question(context: Context, wish: RouteRequest, wishes: Wishes) -> "ChatQuestion | TextQuestion":
    if wish.messages is not None and wish.prompt is None:
        return ChatQuestion(wishes, wish.messages)
    if wish.prompt is not None and wish.messages is None:
        return TextQuestion(context, wishes, wish)
    raise InvalidParameter("send either `prompt` or `messages`", param="prompt")


class ChatQuestion:
    def __init__(self, wishes: Wishes, messages: list[Message]) -> None:
        self.wishes = wishes
        self._messages = messages

    async def conversations(self) -> list[Conversation]:
        return [conversation_in(self._messages)]

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        return [Prompt(token_ids=await encode_messages(student, self._messages))]


class TextQuestion:
    def __init__(self, context: Context, wishes: Wishes, wish: RouteRequest) -> None:
        assert wish.prompt is not None
        self._context = context
        self._model = wish.model
        self._prompts = split_prompt(wish.prompt)
        check_choices(context, len(self._prompts), 1)
        self.wishes = wishes_for_prompts(context.students, wishes, self._prompts)

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
