"""How the bodies of `/v1/chat/completions` look, whole and as chunks of a stream."""

from typing import Literal

from msgspec import UNSET, UnsetType

from engines.sequence import Finish
from models.errors import ServingError
from server.api.logprobs import content_logprobs
from server.generation.plan import Job, Part
from server.generation.sequences import finish_reason
from server.generation.tool_calls import CallReader, delta_of, whole_calls
from server.generation.usage import RunningUsage
from server.wire import sse
from server.wire.base import ChoiceFenhe, UsageReply, UsageSoFar, encoder
from server.wire.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Delta,
)
from server.wire.errors import body_of

EndReason = Literal["stop", "length", "tool_calls"]


class ChatBodyWriter:
    """The bodies of one chat completion. With `reads_calls` tool calls are taken out of the text."""

    def __init__(self, job: Job, *, reads_calls: bool = False) -> None:
        self._job = job
        self._reads_calls = reads_calls
        self._readers: dict[int, CallReader] = {}
        self._has_logprobs = job.requests[0].sampling.logprobs is not None
        self._usage: UnsetType | None = None if job.includes_usage else UNSET
        self._running = RunningUsage(job)
        indices = range(len(job.requests)) if job.is_stream else ()
        self._text = [
            sse.text_chunk(self._chunk(ChunkChoice(index=i, delta=Delta(content=sse.TEXT_MARK)))) for i in indices
        ]

    def opening(self) -> bytes:
        # A request may be answered a second time, after a shared generation failed.
        self._readers = {index: CallReader() for index in range(len(self._job.requests))}
        self._running = RunningUsage(self._job)
        first = Delta(role="assistant", content=None if self._reads_calls else "", refusal=None)
        choices = [ChunkChoice(index=i, delta=first) for i in range(len(self._job.requests))]
        return self._frames(choices)

    def text(self, index: int, text: str) -> bytes:
        if self._reads_calls:
            return self._call_part(Part(index=index, texts=[text]))
        return self._text[index].fill(text)

    def part(self, part: Part) -> bytes:
        self._running.add(part)
        if self._reads_calls:
            return self._call_part(part)
        choices = []
        if part.texts or part.logprobs:
            logprobs = self._logprobs(part) if part.logprobs else None
            choices.append(ChunkChoice(index=part.index, delta=Delta(content=part.text), logprobs=logprobs))
        if part.finish is not None:
            choices.append(_last_choice(part.index, part.finish, finish_reason(part.finish.reason)))
        return self._frames(choices)

    def _call_part(self, part: Part) -> bytes:
        """Text and calls in chunks of their own, then log-probabilities, then the finish reason."""
        reader, finish = self._readers[part.index], part.finish
        pieces = reader.push(part.text) + ([] if finish is None else reader.finish())
        choices = [ChunkChoice(index=part.index, delta=delta_of(piece)) for piece in pieces]
        if part.logprobs:
            choices.append(ChunkChoice(index=part.index, delta=Delta(), logprobs=self._logprobs(part)))
        if finish is not None:
            choices.append(_last_choice(part.index, finish, _end_of(finish, reader)))
        return self._frames(choices)

    def _frames(self, choices: list[ChunkChoice]) -> bytes:
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
            logprobs=self._logprobs(part) if self._has_logprobs else None,
            finish_reason=_end_of(part.finish, reader),
            fenhe=ChoiceFenhe(path=part.finish.path),
        )

    def _logprobs(self, part: Part) -> ChatLogprobs:
        return ChatLogprobs(content=content_logprobs(part.logprobs, self._job.tokenizer.token_name))

    def _chunk(self, choice: ChunkChoice | None, usage: UsageReply | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._job.id,
            created=self._job.created,
            model=self._job.model,
            system_fingerprint=self._job.fingerprint,
            choices=[] if choice is None else [choice],
            usage=self._usage_of(choice) if usage is None else usage,
        )

    def _usage_of(self, choice: ChunkChoice | None) -> UsageSoFar | UnsetType | None:
        return self._usage if choice is None or not self._job.tells_usage else self._running.of(choice.index)


def _message(text: str, reader: CallReader) -> AssistantMessage:
    """The answer's text and the calls taken out of it; `content` is null when there are calls alone."""
    texts = [piece for piece in reader.push(text) + reader.finish() if isinstance(piece, str)]
    if not reader.calls:
        return AssistantMessage(content="".join(texts))
    return AssistantMessage(content="".join(texts) or None, tool_calls=whole_calls(reader.calls))


def _end_of(finish: Finish, reader: CallReader) -> EndReason:
    """`tool_calls` only when every call is whole: a call that was cut off must not be run."""
    reason = finish_reason(finish.reason)
    return "tool_calls" if reason == "stop" and reader.has_whole_calls else reason


def _last_choice(index: int, finish: Finish, reason: EndReason) -> ChunkChoice:
    """The end of a choice, without a delta: clients take one there for a piece of the answer, or drop it."""
    return ChunkChoice(index=index, delta=Delta(), finish_reason=reason, fenhe=ChoiceFenhe(path=finish.path))
