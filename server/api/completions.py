"""`POST /v1/completions`: what its fields mean."""

import dataclasses
import time
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from engines.sequence import SamplingParams
from router.conversation import Conversation
from router.decision import RoutePreferences
from server.api.completions_body import CompletionBodyWriter
from server.api.handler import Handler, read_order
from server.context import Context
from server.generation.answer import answer
from server.generation.envelope import Envelope
from server.generation.limits import answer_tokens, check_choices, max_prompt_tokens
from server.generation.plan import Job, Plan
from server.generation.preferences import preferences_for_prompts
from server.generation.prompts import Prompt, encode_prompt, prompt_text, split_prompt
from server.generation.routing import Routed
from server.generation.sampling import check_least_tokens, recommended_for, sampling_params, stream_options
from server.generation.sequences import answered_model, choice_requests
from server.generation.structure import text_structure_of
from server.long_work import TEXT_BYTES
from server.students.student import ServedStudent, find_student
from server.wire.base import NO_BOUND
from server.wire.completions import CompletionRequest, completion_decoder

T = TypeVar("T")

DEFAULT_MAX_TOKENS = 16
"""Source: OpenAI API reference, completions: max_tokens defaults to 16."""


def completion_handler(context: Context) -> Handler:
    async def create_completion(request: Request) -> Response:
        return await answer(context, await read_order(request, context, completion_decoder, CompletionOrder), request)

    return create_completion


class CompletionOrder:
    """One text completion to be routed and planned: the first prompt decides the student, the hardest one the path."""

    def __init__(
        self,
        context: Context,
        body: CompletionRequest,
        preferences: RoutePreferences,
        envelope: Envelope,
    ) -> None:
        """Raises: BadRequest and its kinds."""
        self._context = context
        self._body = body
        self.envelope = envelope
        options = stream_options(body)
        self._includes_usage = bool(options.include_usage)
        self._tells_usage = self._includes_usage and bool(options.continuous_usage_stats)
        self._prompts = split_prompt(body.prompt)
        self._max_tokens = _max_tokens(body)
        check_least_tokens(body, self._max_tokens)
        self._structure = text_structure_of(body, context.config.limits)
        check_choices(context, len(self._prompts), body.n or 1)
        self.preferences = preferences_for_prompts(context.students, preferences, self._prompts)

    async def conversations(self) -> list[Conversation]:
        student = find_student(self._context.students, self._body.model)
        return await self._run(lambda: [Conversation(last=prompt_text(student, prompt)) for prompt in self._prompts])

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        keeps_text, max_tokens = bool(self._body.echo), max_prompt_tokens(self._context.config.limits, student)

        def encode() -> list[Prompt]:
            return [
                encode_prompt(student, prompt, keeps_text=keeps_text, max_tokens=max_tokens) for prompt in self._prompts
            ]

        prompts = await self._run(encode)
        form = await self._structure.compile(student, self._context.config.limits, self.envelope.tenant)
        return [dataclasses.replace(prompt, grammar=form.grammar, loosened=form.loosened) for prompt in prompts]

    async def _run(self, work: Callable[[], T]) -> T:
        """Work on the prompts' text."""
        envelope = self.envelope
        return await self._context.long_work.run(envelope.num_bytes, work, envelope.tenant, short_bytes=TEXT_BYTES)

    def plan(self, routed: Routed) -> Plan:
        body, target, student, prompts = self._body, routed.target, routed.student, routed.prompts
        if body.echo:  # the prompt is scored by the exact head, and its answer goes on from there
            target = dataclasses.replace(target, head="exact")
        samplings = [self._sampling(student, prompt) for prompt in prompts]
        token_ids = [prompt.token_ids for prompt in prompts]
        job = Job(
            id=f"cmpl-{self.envelope.key}",
            created=int(time.time()),
            model=answered_model(body.model, student),
            path=target.path,
            fingerprint=student.fingerprint,
            requests=choice_requests(body, self.envelope.key, token_ids, samplings, target),
            tokenizer=student.tokenizer,
            n=body.n or 1,
            is_stream=bool(body.stream),
            includes_usage=self._includes_usage,
            tells_usage=self._tells_usage,
        )
        writer = CompletionBodyWriter(job, [prompt.text for prompt in prompts])
        return Plan(target=target, student=student, job=job, writer=writer, loosened=prompts[0].loosened)

    def _sampling(self, student: ServedStudent, prompt: Prompt) -> SamplingParams:
        body = self._body
        sampling = sampling_params(
            body,
            recommended_for(self._context, student),
            max_tokens=self._answer_tokens(student, prompt),
            logprobs=body.logprobs,
            vocab_size=student.tokenizer.vocab_size,
        )
        prompt_logprobs = body.logprobs if body.echo else None
        return dataclasses.replace(sampling, grammar=prompt.grammar, prompt_logprobs=prompt_logprobs)

    def _answer_tokens(self, student: ServedStudent, prompt: Prompt) -> int:
        limits = self._context.config.limits
        return answer_tokens(limits, student, len(prompt.token_ids), self._max_tokens, "prompt")


def _max_tokens(body: CompletionRequest) -> int | None:
    """None: no bound."""
    wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    return None if wanted == NO_BOUND else wanted
