"""`POST /v1/chat/completions`: what its fields mean, and how its bodies look."""

import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from engines.sequence import Finish, TokenLogprob
from models.errors import InvalidParameter, ServingError
from router.conversation import Conversation
from router.decision import RoutePreferences, Target
from server.context import Context
from server.generation.answer import answer
from server.generation.limits import answer_tokens, check_choices, read_json_body
from server.generation.plan import Job, Part, Plan
from server.generation.preferences import TASK_HEADER, preferences_of
from server.generation.prompts import Prompt, conversation_in, encode_messages
from server.generation.sampling import sampling_params, stream_options
from server.generation.sequences import answered_model, choice_requests, finish_reason, text_of
from server.generation.structure import structure_of
from server.generation.tool_calls import CallReader, delta_of, whole_calls
from server.students.student import ServedStudent
from server.telemetry.request_record import record_of
from server.wire import sse
from server.wire.base import ChoiceFenhe, UsageReply, encoder
from server.wire.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    ContentLogprob,
    Delta,
    TopLogprob,
    chat_decoder,
)
from server.wire.decode import decode_body
from server.wire.errors import body_of

Handler = Callable[[Request], Awaitable[Response]]


def chat_handler(context: Context) -> Handler:
    async def create_chat_completion(request: Request) -> Response:
        body = decode_body(await read_json_body(request, context), chat_decoder)
        preferences = preferences_of(context.students, body.model, body.fenhe, request.headers.getlist(TASK_HEADER))
        return await answer(context, ChatOrder(context, body, preferences, record_of(request.scope).key))

    return create_chat_completion


class ChatOrder:
    """One chat completion to be routed and planned."""

    def __init__(self, context: Context, body: ChatRequest, preferences: RoutePreferences, key: str) -> None:
        """Raises: BadRequest and its kinds."""
        self._context = context
        self._body = body
        self._key = key
        self._includes_usage = bool(stream_options(body).include_usage)
        check_choices(context, 1, body.n or 1)
        if body.store:
            raise InvalidParameter("`store`: nothing is stored by this server; leave it out", param="store")
        self._num_logprobs = _num_logprobs(body)
        self._max_tokens = _wanted_tokens(body)
        self._structure = structure_of(body, context.config.limits)
        self._wishes = preferences

    @property
    def preferences(self) -> RoutePreferences:
        return self._wishes

    async def conversations(self) -> list[Conversation]:
        return [conversation_in(self._body.messages)]

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        structure = self._structure
        token_ids = await encode_messages(student, self._body.messages, functions=structure.functions)
        return [Prompt(token_ids=token_ids, grammar=await structure.compile(student, self._context.config.limits))]

    def plan(self, target: Target, student: ServedStudent, prompts: list[Prompt]) -> Plan:
        body, token_ids = self._body, prompts[0].token_ids
        limits = self._context.config.limits
        sampling = sampling_params(
            body,
            max_tokens=answer_tokens(limits, student, len(token_ids), self._max_tokens, "messages"),
            logprobs=self._num_logprobs,
            vocab_size=student.tokenizer.vocab_size,
        )
        sampling = dataclasses.replace(sampling, grammar=prompts[0].grammar)
        job = Job(
            id=f"chatcmpl-{self._key}",
            created=int(time.time()),
            model=answered_model(body.model, student),
            path=target.path,
            fingerprint=student.fingerprint,
            requests=choice_requests(body, self._key, [token_ids], [sampling], target.path),
            n=body.n or 1,
            is_stream=bool(body.stream),
            includes_usage=self._includes_usage,
        )
        shape = ChatShape(job, reads_calls=bool(self._structure.functions))
        return Plan(target=target, student=student, job=job, shape=shape)


def _num_logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise InvalidParameter("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
    return None


def _wanted_tokens(body: ChatRequest) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidParameter(
            f"`max_tokens` {old} and `max_completion_tokens` {new} contradict each other; send one",
            param="max_tokens",
        )
    return old if new is None else new


class ChatShape:
    """The bodies of one chat completion. With `reads_calls` tool calls are taken out of the text."""

    def __init__(self, job: Job, *, reads_calls: bool = False) -> None:
        self._job = job
        self._reads_calls = reads_calls
        self._readers: dict[int, CallReader] = {}
        self._has_logprobs = job.requests[0].sampling.logprobs is not None
        self._usage: UnsetType | None = None if job.includes_usage else UNSET
        indices = range(len(job.requests)) if job.is_stream else ()
        self._text = [
            sse.text_chunk(self._chunk(ChunkChoice(index=i, delta=Delta(content=sse.TEXT_MARK)))) for i in indices
        ]

    def opening(self) -> bytes:
        # A generation that was shared and failed may be told a second time.
        self._readers = {index: CallReader() for index in range(len(self._job.requests))}
        first = Delta(role="assistant", content=None if self._reads_calls else "", refusal=None)
        choices = [ChunkChoice(index=i, delta=first) for i in range(len(self._job.requests))]
        return b"".join(sse.frame(encoder.encode(self._chunk(choice))) for choice in choices)

    def text(self, index: int, text: str) -> bytes:
        if self._reads_calls:
            return self._call_part(Part(index=index, texts=[text]))
        return self._text[index].fill(text)

    def part(self, part: Part) -> bytes:
        if self._reads_calls:
            return self._call_part(part)
        finish = part.finish
        choice = ChunkChoice(
            index=part.index,
            delta=Delta(content=part.text) if part.texts or part.logprobs else Delta(),
            logprobs=_logprobs(part.logprobs) if part.logprobs else None,
            finish_reason=None if finish is None else finish_reason(finish.reason),
            fenhe=UNSET if finish is None else ChoiceFenhe(path=finish.path),
        )
        return sse.frame(encoder.encode(self._chunk(choice)))

    def _call_part(self, part: Part) -> bytes:
        """Text and calls in chunks of their own; log-probabilities and the end in one behind them."""
        reader, finish = self._readers[part.index], part.finish
        pieces = reader.push(part.text) + ([] if finish is None else reader.finish())
        choices = [ChunkChoice(index=part.index, delta=delta_of(piece)) for piece in pieces]
        if part.logprobs or finish is not None:
            last = ChunkChoice(
                index=part.index,
                delta=Delta(),
                logprobs=_logprobs(part.logprobs) if part.logprobs else None,
                finish_reason=None if finish is None else _end_of(finish, reader),
                fenhe=UNSET if finish is None else ChoiceFenhe(path=finish.path),
            )
            choices.append(last)
        return b"".join(sse.frame(encoder.encode(self._chunk(choice))) for choice in choices)

    def usage(self, usage: UsageReply) -> bytes:
        return sse.frame(encoder.encode(self._chunk(None, usage)))

    def failed(self, error: ServingError) -> bytes:
        return sse.frame(body_of(error))

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
        reader = CallReader()
        return ChatChoice(
            index=part.index,
            message=_message(part.text, reader) if self._reads_calls else AssistantMessage(content=part.text),
            logprobs=_logprobs(part.logprobs) if self._has_logprobs else None,
            finish_reason=_end_of(part.finish, reader),
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


def _message(text: str, reader: CallReader) -> AssistantMessage:
    """The text beside the calls, and the calls; no text beside them is null."""
    texts = [piece for piece in reader.push(text) + reader.finish() if isinstance(piece, str)]
    if not reader.calls:
        return AssistantMessage(content="".join(texts))
    return AssistantMessage(content="".join(texts) or None, tool_calls=whole_calls(reader.calls))


def _end_of(finish: Finish, reader: CallReader) -> Literal["stop", "length", "tool_calls"]:
    """`tool_calls` only when every call is whole: what was cut off must not be carried out."""
    reason = finish_reason(finish.reason)
    return "tool_calls" if reason == "stop" and reader.has_whole_calls else reason


def _logprobs(logprobs: list[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs(content=content_logprobs(logprobs))


def content_logprobs(logprobs: list[TokenLogprob]) -> list[ContentLogprob]:
    return [_content_logprob(logprob) for logprob in logprobs]


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
