"""`POST /v1/completions`: what its fields mean, and how its bodies look."""

import dataclasses
import itertools
import time
from collections.abc import Callable

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from engines.sequence import SamplingParams, TokenLogprob
from models.errors import ServingError
from router.conversation import Conversation
from router.decision import RoutePreferences, Target
from server.api.chat import Handler
from server.context import Context
from server.generation.answer import answer
from server.generation.limits import answer_tokens, check_choices, read_json_body
from server.generation.plan import Job, Part, Plan
from server.generation.preferences import TASK_HEADER, preferences_of, wishes_for_prompts
from server.generation.prompts import Prompt, encode_prompt, prompt_text, split_prompt
from server.generation.sampling import sampling_params, stream_options
from server.generation.sequences import answered_model, choice_requests, finish_reason, text_of
from server.students.student import ServedStudent, find_student
from server.telemetry.request_record import record_of
from server.wire import sse
from server.wire.base import ChoiceFenhe, UsageReply, encoder
from server.wire.completions import CompletionRequest, TextChoice, TextCompletion, TextLogprobs, completion_decoder
from server.wire.decode import decode_body
from server.wire.errors import body_of

DEFAULT_MAX_TOKENS = 16
"""Source: OpenAI API reference, completions: max_tokens defaults to 16."""


def completion_handler(context: Context) -> Handler:
    async def create_completion(request: Request) -> Response:
        body = decode_body(await read_json_body(request, context), completion_decoder)
        preferences = preferences_of(context.students, body.model, body.fenhe, request.headers.getlist(TASK_HEADER))
        return await answer(context, CompletionOrder(context, body, preferences, record_of(request.scope).key))

    return create_completion


class CompletionOrder:
    """One text completion to be routed and planned: its first prompt decides the student, its neediest the path."""

    def __init__(self, context: Context, body: CompletionRequest, preferences: RoutePreferences, key: str) -> None:
        """Raises: BadRequest and its kinds."""
        self._context = context
        self._body = body
        self._key = key
        self._includes_usage = bool(stream_options(body).include_usage)
        self._prompts = split_prompt(body.prompt)
        check_choices(context, len(self._prompts), body.n or 1)
        self._wishes = wishes_for_prompts(context.students, preferences, self._prompts)

    @property
    def preferences(self) -> RoutePreferences:
        return self._wishes

    async def conversations(self) -> list[Conversation]:
        student = find_student(self._context.students, self._body.model)
        return [Conversation(last=await prompt_text(student, prompt)) for prompt in self._prompts]

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        is_echo = bool(self._body.echo)
        return [await encode_prompt(student, prompt, keeps_text=is_echo) for prompt in self._prompts]

    def plan(self, target: Target, student: ServedStudent, prompts: list[Prompt]) -> Plan:
        body = self._body
        samplings = [self._sampling(student, prompt) for prompt in prompts]
        token_ids = [prompt.token_ids for prompt in prompts]
        job = Job(
            id=f"cmpl-{self._key}",
            created=int(time.time()),
            model=answered_model(body.model, student),
            path=target.path,
            fingerprint=student.fingerprint,
            requests=choice_requests(body, self._key, token_ids, samplings, target.path),
            n=body.n or 1,
            is_stream=bool(body.stream),
            includes_usage=self._includes_usage,
        )
        shape = TextShape(job, [prompt.text for prompt in prompts], student.tokenizer.token_bytes)
        return Plan(target=target, student=student, job=job, shape=shape)

    def _sampling(self, student: ServedStudent, prompt: Prompt) -> SamplingParams:
        body = self._body
        sampling = sampling_params(
            body,
            max_tokens=self._answer_tokens(student, prompt),
            logprobs=body.logprobs,
            vocab_size=student.tokenizer.vocab_size,
        )
        return dataclasses.replace(sampling, prompt_logprobs=body.logprobs) if body.echo else sampling

    def _answer_tokens(self, student: ServedStudent, prompt: Prompt) -> int:
        limits, wanted = self._context.config.limits, self._body.max_tokens
        num_tokens = answer_tokens(limits, student, len(prompt.token_ids), wanted, "prompt")
        return num_tokens if wanted is not None else min(DEFAULT_MAX_TOKENS, num_tokens)


class TextShape:
    """The bodies of one text completion.

    `echoes` has a text to put in front per prompt, mostly empty. An echo with log-probabilities comes with those of
    its tokens, in the choice's first chunk.
    """

    def __init__(self, job: Job, echoes: list[str], token_bytes: Callable[[int], bytes]) -> None:
        self._job = job
        self._echoes = echoes
        self._token_bytes = token_bytes
        self._is_scored = job.requests[0].sampling.prompt_logprobs is not None
        self._begun: set[int] = set()
        self._num_alternatives = job.requests[0].sampling.logprobs
        self._usage: UnsetType | None = None if job.includes_usage else UNSET
        self._offsets: dict[int, int] = {}
        indices = range(len(job.requests)) if job.is_stream else ()
        self._text = [sse.text_chunk(self._completion([TextChoice(index=i, text=sse.TEXT_MARK)])) for i in indices]

    def opening(self) -> bytes:
        self._begun, self._offsets = set(), {}  # a generation that was shared and failed may be told a second time
        if self._is_scored:
            return b""
        echoes = [self._echo(index) for index in range(len(self._job.requests))]
        return b"".join(self.text(index, echo) for index, echo in enumerate(echoes) if echo)

    def text(self, index: int, text: str) -> bytes:
        return self._text[index].fill(text)

    def part(self, part: Part) -> bytes:
        echo = self._echo(part.index) if self._is_unscored(part) else ""
        return sse.frame(encoder.encode(self._completion([self._choice(part, echo)])))

    def usage(self, usage: UsageReply) -> bytes:
        return sse.frame(encoder.encode(self._completion([], usage)))

    def failed(self, error: ServingError) -> bytes:
        return sse.frame(body_of(error))

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes:
        self._begun, self._offsets = set(), {}
        choices = [self._choice(part, self._echo(part.index)) for part in parts]
        return encoder.encode(self._completion(choices, usage))

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._job.n]

    def _is_unscored(self, part: Part) -> bool:
        """Whether the prompt's log-probabilities are still to be told before this part's own."""
        return self._is_scored and part.index not in self._begun

    def _choice(self, part: Part, echo: str = "") -> TextChoice:
        finish = part.finish
        has_some = bool(part.logprobs) or self._is_unscored(part) or not self._job.is_stream
        logprobs = self._logprobs(part) if has_some and self._num_alternatives is not None else None
        self._begun.add(part.index)
        return TextChoice(
            index=part.index,
            text=echo + part.text,
            logprobs=logprobs,
            finish_reason=None if finish is None else finish_reason(finish.reason),
            fenhe=UNSET if finish is None else ChoiceFenhe(path=finish.path),
        )

    def _logprobs(self, part: Part) -> TextLogprobs:
        tokens = [text_of(logprob) for logprob in part.logprobs]
        chosen: list[float | None] = [logprob.logprob for logprob in part.logprobs]
        top: list[dict[str, float] | None] = [_top(logprob) for logprob in part.logprobs]
        if self._is_unscored(part):
            tokens.insert(0, self._first_token(part.index))
            chosen.insert(0, None)
            top.insert(0, None)
        ends = list(itertools.accumulate(map(len, tokens), initial=self._offsets.get(part.index, 0)))
        self._offsets[part.index] = ends.pop()
        return TextLogprobs(
            tokens=tokens,
            token_logprobs=chosen,
            top_logprobs=top if self._num_alternatives else None,
            text_offset=ends,
        )

    def _first_token(self, index: int) -> str:
        return self._token_bytes(self._job.requests[index].prompt_token_ids[0]).decode(errors="replace")

    def _completion(self, choices: list[TextChoice], usage: UsageReply | None = None) -> TextCompletion:
        return TextCompletion(
            id=self._job.id,
            created=self._job.created,
            model=self._job.model,
            system_fingerprint=self._job.fingerprint,
            choices=choices,
            usage=self._usage if usage is None else usage,
        )


def _top(logprob: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the chosen one, which may not be among them.

    Source: OpenAI API reference, completions: up to `logprobs` + 1 elements.
    """
    return {text_of(other): other.logprob for other in (*logprob.alternatives, logprob)}
