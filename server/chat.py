"""`POST /v1/chat/completions`: what its fields mean, and how its bodies look."""

import time
from collections.abc import Awaitable, Callable

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from engines.sequence import TokenLogprob
from models.errors import InvalidParameter
from router.conversation import Conversation
from router.decision import Target, Wishes
from server import sse
from server.answer import Job, Part, Plan, answer
from server.context import Context
from server.decode import decode_body
from server.limits import answer_tokens, check_choices, read_json_body
from server.prompts import Prompt, conversation_in, encode_messages
from server.record import record_of
from server.requests import answered_model, choice_requests, finish_reason, text_of
from server.sampling import sampling_params, stream_options
from server.schema import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChoiceFenhe,
    ChunkChoice,
    ContentLogprob,
    Delta,
    TopLogprob,
    UsageReply,
    chat_decoder,
    encoder,
)
from server.student import ServedStudent
from server.wishes import TASK_HEADER, wishes_of

Handler = Callable[[Request], Awaitable[Response]]


def chat_handler(context: Context) -> Handler:
    async def create_chat_completion(request: Request) -> Response:
        wish = decode_body(await read_json_body(request, context), chat_decoder)
        wishes = wishes_of(context.students, wish.model, wish.fenhe, request.headers.getlist(TASK_HEADER))
        return await answer(context, ChatOrder(context, wish, wishes, record_of(request.scope).key))

    return create_chat_completion


class ChatOrder:
    """One chat completion to be routed and planned."""

    def __init__(self, context: Context, wish: ChatRequest, wishes: Wishes, key: str) -> None:
        """Raises: BadRequest and its kinds."""
        self._context = context
        self._wish = wish
        self._key = key
        self._includes_usage = bool(stream_options(wish).include_usage)
        check_choices(context, 1, wish.n or 1)
        if wish.store:
            raise InvalidParameter("`store`: nothing is stored by this server; leave it out", param="store")
        self._num_logprobs = _num_logprobs(wish)
        self._max_tokens = _wanted_tokens(wish)
        self._wishes = wishes

    @property
    def wishes(self) -> Wishes:
        return self._wishes

    async def conversations(self) -> list[Conversation]:
        return [conversation_in(self._wish.messages)]

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        return [Prompt(token_ids=await encode_messages(student, self._wish.messages))]

    def plan(self, target: Target, student: ServedStudent, prompts: list[Prompt]) -> Plan:
        wish, token_ids = self._wish, prompts[0].token_ids
        limits = self._context.config.limits
        sampling = sampling_params(
            wish,
            max_tokens=answer_tokens(limits, student, len(token_ids), self._max_tokens, "messages"),
            logprobs=self._num_logprobs,
            vocab_size=student.tokenizer.vocab_size,
        )
        job = Job(
            id=f"chatcmpl-{self._key}",
            created=int(time.time()),
            model=answered_model(wish.model, student),
            path=target.path,
            fingerprint=student.fingerprint,
            requests=choice_requests(wish, self._key, [token_ids], [sampling], target.path),
            n=wish.n or 1,
            is_stream=bool(wish.stream),
            includes_usage=self._includes_usage,
        )
        return Plan(target=target, student=student, job=job, shape=ChatShape(job))


def _num_logprobs(wish: ChatRequest) -> int | None:
    if wish.logprobs:
        return wish.top_logprobs or 0
    if wish.top_logprobs is not None:
        raise InvalidParameter("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
    return None


def _wanted_tokens(wish: ChatRequest) -> int | None:
    old, new = wish.max_tokens, wish.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidParameter(
            f"`max_tokens` {old} and `max_completion_tokens` {new} contradict each other; send one",
            param="max_tokens",
        )
    return old if new is None else new


class ChatShape:
    """The bodies of one chat completion."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._has_logprobs = job.requests[0].sampling.logprobs is not None
        self._usage: UnsetType | None = None if job.includes_usage else UNSET
        indices = range(len(job.requests)) if job.is_stream else ()
        self._text = [
            sse.text_chunk(self._chunk(ChunkChoice(index=i, delta=Delta(content=sse.TEXT_MARK)))) for i in indices
        ]

    def opening(self) -> bytes:
        first = Delta(role="assistant", content="", refusal=None)
        choices = [ChunkChoice(index=i, delta=first) for i in range(len(self._job.requests))]
        return b"".join(sse.frame(encoder.encode(self._chunk(choice))) for choice in choices)

    def text(self, index: int, text: str) -> bytes:
        return self._text[index].fill(text)

    def part(self, part: Part) -> bytes:
        finish = part.finish
        choice = ChunkChoice(
            index=part.index,
            delta=Delta(content=part.text) if part.texts or part.logprobs else Delta(),
            logprobs=_logprobs(part.logprobs) if part.logprobs else None,
            finish_reason=None if finish is None else finish_reason(finish.reason),
            fenhe=UNSET if finish is None else ChoiceFenhe(path=finish.path),
        )
        return sse.frame(encoder.encode(self._chunk(choice)))

    def usage(self, usage: UsageReply) -> bytes:
        return sse.frame(encoder.encode(self._chunk(None, usage)))

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes:
        return encoder.encode(
            ChatCompletion(
                id=self._job.id,
                created=self._job.created,
                model=self._job.model,
                system_fingerprint=self._job.fingerprint,
                choices=[self._choice(part) for part in parts],
                usage=usage,
            )
        )

    def _choice(self, part: Part) -> ChatChoice:
        assert part.finish is not None
        return ChatChoice(
            index=part.index,
            message=AssistantMessage(content=part.text),
            logprobs=_logprobs(part.logprobs) if self._has_logprobs else None,
            finish_reason=finish_reason(part.finish.reason),
            fenhe=ChoiceFenhe(path=part.finish.path),
        )

    def _chunk(self, choice: ChunkChoice | None, usage: UsageReply | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._job.id,
            created=self._job.created,
            model=self._job.model,
            system_fingerprint=self._job.fingerprint,
            choices=[] if choice is None else [choice],
            usage=self._usage if usage is None else usage,
        )


def _logprobs(logprobs: list[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs(content=[_content_logprob(logprob) for logprob in logprobs])


def _content_logprob(logprob: TokenLogprob) -> ContentLogprob:
    return ContentLogprob(
        token=text_of(logprob),
        logprob=logprob.logprob,
        bytes=list(logprob.token_bytes),
        top_logprobs=[
            TopLogprob(token=text_of(other), logprob=other.logprob, bytes=list(other.token_bytes))
            for other in logprob.alternatives
        ],
    )
