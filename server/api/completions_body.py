"""How the bodies of `/v1/completions` look, whole and as chunks of a stream."""

from msgspec import UNSET, UnsetType

from engines.sequence import TokenLogprob
from models.errors import ServingError
from server.api.logprobs import best_by_text, token_text
from server.api.text_offsets import TextOffsets
from server.generation.plan import Job, Part
from server.generation.sequences import finish_reason
from server.generation.usage import RunningUsage
from server.wire import sse
from server.wire.base import ChoiceFenhe, UsageReply, UsageSoFar, encoded, encoder
from server.wire.completions import TextChoice, TextCompletion, TextLogprobs
from server.wire.errors import body_of


class CompletionBodyWriter:
    """The bodies of one text completion.

    `echoes` has what to repeat before the answer, a text per prompt, empty without `echo`. With log-probabilities it
    comes in the choice's first chunk, together with those of the prompt's tokens.
    """

    def __init__(self, job: Job, echoes: list[str]) -> None:
        self._job = job
        self._echoes = echoes
        self._is_scored = job.requests[0].sampling.prompt_logprobs is not None
        self._begun: set[int] = set()
        self._num_alternatives = job.requests[0].sampling.logprobs
        self._usage: UnsetType | None = None if job.includes_usage else UNSET
        self._running = RunningUsage(job)
        self._offsets: dict[int, TextOffsets] = {}
        indices = range(len(job.requests)) if job.is_stream else ()
        self._text = [sse.text_chunk(self._completion([TextChoice(index=i, text=sse.TEXT_MARK)])) for i in indices]

    def opening(self) -> bytes:
        # A request may be answered a second time, after a shared generation failed.
        self._begun, self._offsets, self._running = set(), {}, RunningUsage(self._job)
        if self._is_scored:
            return b""
        echoes = [self._echo(index) for index in range(len(self._job.requests))]
        return b"".join(self.text(index, echo) for index, echo in enumerate(echoes) if echo)

    def text(self, index: int, text: str) -> bytes:
        if self._job.tells_usage:
            return sse.frame(encoder.encode(self._completion([TextChoice(index=index, text=text)])))
        return self._text[index].fill(text)

    def part(self, part: Part) -> bytes:
        self._running.add(part)
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
        """Whether the prompt's log-probabilities must still be sent, before this part's own."""
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
        name, is_unscored = self._job.tokenizer.token_name, self._is_unscored(part)
        first = [self._first_token(part.index)] if is_unscored else []
        logprobs = [*first, *part.logprobs]
        top: list[dict[str, float] | None] = [encoded(best_by_text(logprob, name)) for logprob in part.logprobs]
        values: list[float | None] = [logprob.logprob for logprob in part.logprobs]
        return TextLogprobs(
            tokens=[token_text(logprob, name) for logprob in logprobs],
            token_logprobs=[None, *values] if is_unscored else values,
            top_logprobs=([None, *top] if is_unscored else top) if self._num_alternatives else None,
            text_offset=self._text_offsets(part, logprobs),
        )

    def _text_offsets(self, part: Part, logprobs: list[TokenLogprob]) -> list[int]:
        if part.index not in self._offsets:
            num_echoed = len(self._job.requests[part.index].prompt_token_ids) if self._is_scored else 0
            self._offsets[part.index] = TextOffsets(self._echo(part.index), num_echoed, self._job.tokenizer.token_name)
        offsets = [self._offsets[part.index].place(logprob) for logprob in logprobs]
        if self._job.is_stream:
            return offsets
        end = len(self._echo(part.index)) + len(part.text)  # tokens of a stop string have no place in the text
        return [min(offset, end) for offset in offsets]

    def _first_token(self, index: int) -> TokenLogprob:
        """The prompt's first token, which nothing precedes: only its text counts."""
        token_id = self._job.requests[index].prompt_token_ids[0]
        return TokenLogprob(token_id=token_id, logprob=0.0, token_bytes=self._job.tokenizer.token_bytes(token_id))

    def _completion(self, choices: list[TextChoice], usage: UsageReply | None = None) -> TextCompletion:
        return TextCompletion(
            id=self._job.id,
            created=self._job.created,
            model=self._job.model,
            system_fingerprint=self._job.fingerprint,
            choices=choices,
            usage=self._usage_of(choices) if usage is None else usage,
        )

    def _usage_of(self, choices: list[TextChoice]) -> UsageSoFar | UnsetType | None:
        return self._running.of(choices[0].index) if choices and self._job.tells_usage else self._usage
