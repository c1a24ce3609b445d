"""What is generated for one HTTP request, what has been generated so far, and how it is written."""

from dataclasses import dataclass, field
from typing import Protocol

from engines.schema_loosening import Loosened
from engines.sequence import Finish, FinishReason, GenerationRequest, SequenceEvent, TokenLogprob
from models.errors import ServingError, StepFailed, Stopping
from router.decision import Target
from server.students.student import ServedStudent, Tokenizer
from server.wire import sse
from server.wire.base import UsageReply

Batch = list[tuple[int, SequenceEvent]]


@dataclass(slots=True, kw_only=True, frozen=True)
class Job:
    """One HTTP request's work: a sequence per choice, `n` choices per prompt, in order of their index.

    `model` is the id that the answer carries, `tokenizer` its student's, `done` what ends a stream.
    With `includes_usage` a stream tells its usage at the end, with `tells_usage` also with every chunk.
    """

    id: str
    created: int
    model: str
    path: str
    fingerprint: str
    requests: tuple[GenerationRequest, ...]
    tokenizer: Tokenizer
    n: int = 1
    is_stream: bool = False
    includes_usage: bool = False
    tells_usage: bool = False
    done: bytes = sse.DONE


@dataclass(slots=True, kw_only=True)
class Part:
    """What was generated of one choice: since the last chunk, or in the whole answer."""

    index: int
    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 else "".join(self.texts)

    def add(self, event: SequenceEvent) -> None:
        """Append an event. Raises: the error that ended the sequence, if one did."""
        if event.text:
            self.texts.append(event.text)
        self.num_tokens += len(event.token_ids)
        self.logprobs.extend(event.logprobs)
        if event.finish is not None:
            check_finish(event.finish)
            self.finish = event.finish


class BodyWriter(Protocol):
    """Writes the bodies of one API: `whole` is a JSON body, all others are framed events of a stream.

    `opening` begins a stream; it begins it anew when a request is answered a second time. `text` is for plain text of
    the choice `index`, `part` for everything else, `usage` for the end.
    """

    def opening(self) -> bytes: ...

    def text(self, index: int, text: str) -> bytes: ...

    def part(self, part: Part) -> bytes: ...

    def usage(self, usage: UsageReply) -> bytes: ...

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes: ...

    def failed(self, error: ServingError) -> bytes:
        """The last event of a stream that fails."""
        ...


@dataclass(slots=True, kw_only=True, frozen=True)
class Plan:
    """What is generated for one request by one student, how its answer is written, and the places of the request's
    schemas that it need not keep to."""

    target: Target
    student: ServedStudent
    job: Job
    writer: BodyWriter
    loosened: tuple[Loosened, ...] = ()


FAILURES = (FinishReason.ERROR, FinishReason.ABORT)
"""Ends at which an answer is an error."""


def check_finish(finish: Finish) -> None:
    """Raises: the error a sequence ended with; Stopping when the engine aborted it."""
    if finish.reason is FinishReason.ERROR:
        raise finish.error or StepFailed("the engine failed on this sequence")
    if finish.reason is FinishReason.ABORT:
        raise Stopping("the answer was cut off because the student is being stopped", retry_after_s=5.0)


def merge(batch: Batch) -> list[Part]:
    """One part per choice: what several steps produced while the client was slow is sent together."""
    parts: dict[int, Part] = {}
    for index, event in batch:
        part = parts.get(index)
        if part is None:
            part = parts[index] = Part(index=index)
        part.add(event)
    return list(parts.values())
