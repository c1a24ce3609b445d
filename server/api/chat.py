"""`POST /v1/chat/completions`: what its fields mean."""

import dataclasses
import time

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter
from router.conversation import Conversation
from router.decision import RoutePreferences
from server.api.chat_body import ChatBodyWriter
from server.api.handler import Handler, read_order
from server.context import Context
from server.generation.answer import answer
from server.generation.envelope import Envelope
from server.generation.limits import answer_tokens, check_choices, max_prompt_tokens
from server.generation.plan import Job, Plan
from server.generation.prompts import Prompt, conversation_in, encode_messages
from server.generation.rendering import rendering_of
from server.generation.routing import Routed
from server.generation.sampling import check_least_tokens, recommended_for, sampling_params, stream_options
from server.generation.sequences import answered_model, choice_requests
from server.generation.structure import structure_of
from server.long_work import TEXT_BYTES
from server.students.student import ServedStudent
from server.wire.base import NO_BOUND
from server.wire.chat import ChatRequest, chat_decoder


def chat_handler(context: Context) -> Handler:
    async def create_chat_completion(request: Request) -> Response:
        return await answer(context, await read_order(request, context, chat_decoder, ChatOrder), request)

    return create_chat_completion


class ChatOrder:
    """One chat completion to be routed and planned."""

    def __init__(
        self,
        context: Context,
        body: ChatRequest,
        preferences: RoutePreferences,
        envelope: Envelope,
    ) -> None:
        """Raises: BadRequest and its kinds."""
        self.preferences = preferences
        self.envelope = envelope
        self._context = context
        self._body = body
        options = stream_options(body)
        self._includes_usage = bool(options.include_usage)
        self._tells_usage = self._includes_usage and bool(options.continuous_usage_stats)
        check_choices(context, 1, body.n or 1)
        self._num_logprobs = _num_logprobs(body)
        self._max_tokens = _max_tokens(body)
        check_least_tokens(body, self._max_tokens)
        self._rendering = rendering_of(body, body.messages)
        self._structure = structure_of(body, context.config.limits)

    @property
    def reads_calls(self) -> bool:
        """Whether the answer may hold calls of functions."""
        return bool(self._structure.functions)

    async def conversations(self) -> list[Conversation]:
        envelope, messages = self.envelope, self._body.messages
        run = self._context.long_work.run
        return [await run(envelope.num_bytes, lambda: conversation_in(messages), envelope.tenant)]

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        structure, limits, envelope = self._structure, self._context.config.limits, self.envelope
        parses_special = self._context.config.special_tokens_in_messages

        def encode() -> tuple[int, ...]:
            max_tokens = max_prompt_tokens(limits, student)
            return encode_messages(
                student,
                self._body.messages,
                functions=structure.functions,
                rendering=self._rendering,
                max_tokens=max_tokens,
                parses_special=parses_special,
            )

        run = self._context.long_work.run
        token_ids = await run(envelope.num_bytes, encode, envelope.tenant, short_bytes=TEXT_BYTES)
        form = await structure.compile(student, limits, envelope.tenant)
        return [Prompt(token_ids=token_ids, grammar=form.grammar, loosened=form.loosened)]

    def plan(self, routed: Routed) -> Plan:
        key, body, target, student, prompt = (
            self.envelope.key,
            self._body,
            routed.target,
            routed.student,
            routed.prompts[0],
        )
        limits, num_prompt_tokens = self._context.config.limits, len(prompt.token_ids)
        sampling = sampling_params(
            body,
            recommended_for(self._context, student),
            max_tokens=answer_tokens(limits, student, num_prompt_tokens, self._max_tokens, "messages"),
            logprobs=self._num_logprobs,
            vocab_size=student.tokenizer.vocab_size,
        )
        sampling = dataclasses.replace(sampling, grammar=prompt.grammar)
        job = Job(
            id=f"chatcmpl-{key}",
            created=int(time.time()),
            model=answered_model(body.model, student),
            path=target.path,
            fingerprint=student.fingerprint,
            requests=choice_requests(body, key, [prompt.token_ids], [sampling], target),
            tokenizer=student.tokenizer,
            n=body.n or 1,
            is_stream=bool(body.stream),
            includes_usage=self._includes_usage,
            tells_usage=self._tells_usage,
        )
        writer = ChatBodyWriter(job, reads_calls=self.reads_calls)
        return Plan(target=target, student=student, job=job, writer=writer, loosened=prompt.loosened)


def _num_logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidParameter("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
    return None


def _max_tokens(body: ChatRequest) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidParameter(
            f"`max_tokens` {old} and `max_completion_tokens` {new} contradict each other; send one",
            param="max_tokens",
        )
    given = old if new is None else new
    return None if given == NO_BOUND else given
