"""`POST /v1/completions`: what its fields mean, and how its bodies look."""

import time
from dataclasses import dataclass

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from engines.sequence import TokenLogprob
from models.errors import InvalidParameter, UnsupportedField
from server import sse
from server.answer import Answer, Job, Part
from server.chat import Handler
from server.context import Context
from server.decode import decode_body
from server.limits import answer_tokens, check_choices, read_json_body
from server.prompts import check_token_ids, encode_text
from server.record import record_of
from server.requests import choice_requests, finish_reason, text_of
from server.sampling import sampling_params, stream_options
from server.schema import (
    ChoiceFenhe,
    CompletionRequest,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    UsageReply,
    completion_decoder,
    encoder,
)
from server.student import find_model

DEFAULT_MAX_TOKENS = 16
"""Source: OpenAI API reference, completions: max_tokens defaults to 16."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Prompt:
    """`text` is kept only for `echo`."""

    token_ids: tuple[int, ...]
    text: str = ""


def completion_handler(context: Context) -> Handler:
    async def create_completion(request: Request) -> Response:
        wish = decode_body(await read_json_body(request, context), completion_decoder)
        job, echoes = await plan_completion(context, wish, record_of(request.scope).key)
        return Answer(context, job, TextShape(job, echoes))

    return create_completion


async def plan_completion(context: Context, wish: CompletionRequest, key: str) -> tuple[Job, list[str]]:
    """Everything decided before the engine is asked, and the text to echo per prompt.

    Raises: BadRequest and its kinds, UnknownModel.
    """
    model = find_model(context.student.manifest, wish.model)
    options = stream_options(wish)
    if wish.echo and wish.logprobs is not None:
        raise UnsupportedField("`echo` with `logprobs` is not supported by this server; leave one out", param="echo")
    n = wish.n or 1
    wanted = _split_prompt(wish.prompt)
    check_choices(context, len(wanted), n)
    prompts = [await _encode(context, one, bool(wish.echo)) for one in wanted]
    samplings = [
        sampling_params(
            wish,
            max_tokens=_answer_tokens(context, prompt, wish),
            logprobs=wish.logprobs,
            vocab_size=context.student.tokenizer.vocab_size,
        )
        for prompt in prompts
    ]
    token_ids = [prompt.token_ids for prompt in prompts]
    job = Job(
        id=f"cmpl-{key}",
        created=int(time.time()),
        model=model,
        fingerprint=context.fingerprint,
        requests=choice_requests(wish, key, token_ids, samplings, model.path),
        n=n,
        is_stream=bool(wish.stream),
        includes_usage=bool(options.include_usage),
    )
    return job, [prompt.text for prompt in prompts]


def _split_prompt(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One entry per prompt. Raises: InvalidParameter for a list that mixes kinds."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [ids]
    several = [item for item in prompt if not isinstance(item, int)]
    if len(several) < len(prompt) or len({type(item) for item in several}) > 1:
        raise InvalidParameter("`prompt`: strings, token ids and lists of token ids cannot be mixed", param="prompt")
    return several


async def _encode(context: Context, prompt: str | list[int], is_echo: bool) -> Prompt:
    if isinstance(prompt, str):
        token_ids = await encode_text(context, prompt)
        if not token_ids:
            raise InvalidParameter("`prompt`: there is nothing to complete in an empty prompt", param="prompt")
        return Prompt(token_ids=token_ids, text=prompt if is_echo else "")
    token_ids = check_token_ids(context, prompt, "prompt")
    text = context.student.tokenizer.decode(token_ids, skip_special=False) if is_echo else ""
    return Prompt(token_ids=token_ids, text=text)


def _answer_tokens(context: Context, prompt: Prompt, wish: CompletionRequest) -> int:
    if wish.max_tokens is not None:
        return answer_tokens(context, len(prompt.token_ids), wish.max_tokens, "prompt")
    return min(DEFAULT_MAX_TOKENS, answer_tokens(context, len(prompt.token_ids), None, "prompt"))


class TextShape:
    """The bodies of one text completion. `echoes` has a text to put in front per prompt, mostly empty."""

    def __init__(self, job: Job, echoes: list[str]) -> None:
        self._job = job
        self._echoes = echoes
        self._num_alternatives = job.requests[0].sampling.logprobs
        self._usage: UnsetType | None = None if job.includes_usage else UNSET
        self._offsets = [0] * len(job.requests)
        indices = range(len(job.requests)) if job.is_stream else ()
        self._text = [sse.text_chunk(self._body([TextChoice(index=i, text=sse.TEXT_MARK)])) for i in indices]

    def opening(self) -> bytes:
        echoes = [self._echo(index) for index in range(len(self._job.requests))]
        return b"".join(self.text(index, echo) for index, echo in enumerate(echoes) if echo)

    def text(self, index: int, text: str) -> bytes:
        return self._text[index].fill(text)

    def part(self, part: Part) -> bytes:
        return sse.frame(encoder.encode(self._body([self._choice(part)])))

    def usage(self, usage: UsageReply) -> bytes:
        return sse.frame(encoder.encode(self._body([], usage)))

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes:
        choices = [self._choice(part, self._echo(part.index)) for part in parts]
        return encoder.encode(self._body(choices, usage))

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._job.n]

    def _choice(self, part: Part, echo: str = "") -> TextChoice:
        finish = part.finish
        has_logprobs = self._num_alternatives is not None and (part.logprobs or not self._job.is_stream)
        return TextChoice(
            index=part.index,
            text=echo + part.text,
            logprobs=self._logprobs(part) if has_logprobs else None,
            finish_reason=None if finish is None else finish_reason(finish.reason),
            fenhe=UNSET if finish is None else ChoiceFenhe(path=finish.path),
        )

    def _logprobs(self, part: Part) -> TextLogprobs:
        tokens = [text_of(logprob) for logprob in part.logprobs]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[part.index])
            self._offsets[part.index] += len(token)
        return TextLogprobs(
            tokens=tokens,
            token_logprobs=[logprob.logprob for logprob in part.logprobs],
            top_logprobs=[_top(logprob) for logprob in part.logprobs] if self._num_alternatives else None,
            text_offset=offsets,
        )

    def _body(self, choices: list[TextChoice], usage: UsageReply | None = None) -> TextCompletion:
        return TextCompletion(
            id=self._job.id,
            created=self._job.created,
            model=self._job.model.id,
            system_fingerprint=self._job.fingerprint,
            choices=choices,
            usage=self._usage if usage is None else usage,
        )


def _top(logprob: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the chosen one, which may not be among them.

    Source: OpenAI API reference, completions: up to `logprobs` + 1 elements.
    """
    return {text_of(other): other.logprob for other in (*logprob.alternatives, logprob)}
