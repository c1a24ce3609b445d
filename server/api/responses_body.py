"""How the bodies of `/v1/responses` look: one object, or typed events in the order the specification gives them."""

import time
from typing import Any, Literal

import msgspec

from models.errors import ServingError
from server.api.logprobs import content_logprobs
from server.generation.plan import Job, Part
from server.wire import sse
from server.wire.base import ChoiceFenhe, UsageReply, encoder
from server.wire.chat import ContentLogprob
from server.wire.errors import status_of
from server.wire.responses import (
    EventType,
    IncompleteDetails,
    InputTokensDetails,
    OutputMessage,
    OutputText,
    ResponseEvent,
    ResponseFault,
    ResponseReply,
    ResponseRequest,
    ResponseUsage,
    TextReply,
)

Status = Literal["in_progress", "completed", "incomplete"]


class ResponseBodyWriter:
    """The bodies of one response, whose only item is a message of one part."""

    def __init__(self, job: Job, body: ResponseRequest, key: str) -> None:
        self._job = job
        self._body = body
        self._item_id = f"msg_{key}"
        self._begin()

    def _begin(self) -> None:
        self._num_events = 0
        self._texts: list[str] = []
        self._logprobs: list[ContentLogprob] = []
        self._status: Status = "in_progress"
        self._path = self._job.path

    def opening(self) -> bytes:
        self._begin()  # a request may be answered a second time, after a shared generation failed
        events = [
            self._event("response.created", response=self._reply([])),
            self._event("response.in_progress", response=self._reply([])),
            self._event("response.output_item.added", output_index=0, item=self._message(content=[])),
            self._part_event("response.content_part.added", part=OutputText(text="")),
        ]
        return b"".join(events)

    def text(self, index: int, text: str) -> bytes:
        self._texts.append(text)
        return self._part_event("response.output_text.delta", delta=text, logprobs=[])

    def part(self, part: Part) -> bytes:
        delta = b""
        if part.texts or part.logprobs:
            logprobs = content_logprobs(part.logprobs, self._job.tokenizer.token_name)
            self._texts.append(part.text)
            self._logprobs += logprobs
            delta = self._part_event("response.output_text.delta", delta=part.text, logprobs=logprobs)
        return delta if part.finish is None else delta + self._finish(part)

    def usage(self, usage: UsageReply) -> bytes:
        """The end of the stream: it carries the whole response."""
        kind: EventType = "response.completed" if self._status == "completed" else "response.incomplete"
        return self._event(kind, response=self._finished(usage))

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes:
        self._begin()
        self._texts = [parts[0].text]
        self._logprobs = content_logprobs(parts[0].logprobs, self._job.tokenizer.token_name)
        self._end(parts[0])
        return encoder.encode(self._finished(usage))

    def failed(self, error: ServingError) -> bytes:
        """The end of a stream that failed."""
        fault = ResponseFault(code=_fault_code(status_of(error)), message=error.message)
        output = [self._message("incomplete")] if self._texts else []
        return self._event("response.failed", response=self._reply(output, status="failed", error=fault))

    def _finish(self, part: Part) -> bytes:
        self._end(part)
        text = "".join(self._texts)
        events = [
            self._part_event("response.output_text.done", text=text, logprobs=self._logprobs),
            self._part_event("response.content_part.done", part=self._content()),
            self._event("response.output_item.done", output_index=0, item=self._message(self._status)),
        ]
        return b"".join(events)

    def _end(self, part: Part) -> None:
        assert part.finish is not None
        self._status = "incomplete" if part.finish.reason == "length" else "completed"
        self._path = part.finish.path

    def _finished(self, usage: UsageReply) -> ResponseReply:
        is_cut = self._status == "incomplete"
        return self._reply(
            [self._message(self._status)],
            status=self._status,
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            fenhe=ChoiceFenhe(path=self._path),
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
                fenhe=usage.fenhe,
            ),
        )

    def _content(self) -> OutputText:
        return OutputText(text="".join(self._texts), logprobs=self._logprobs)

    def _message(self, status: Status = "in_progress", content: list[OutputText] | None = None) -> OutputMessage:
        return OutputMessage(id=self._item_id, status=status, content=[self._content()] if content is None else content)

    def _reply(self, output: list[OutputMessage], **fields: Any) -> ResponseReply:
        body, sampling = self._body, self._job.requests[0].sampling
        common: dict[str, Any] = {
            "status": "in_progress",
            "id": self._job.id,
            "created_at": self._job.created,
            "model": self._job.model,
            "output": output,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": TextReply(format=_format_of(body)),
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "user": body.user,
        }
        return ResponseReply(**(common | fields))

    def _part_event(self, kind: EventType, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._item_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: EventType, **fields: Any) -> bytes:
        event = ResponseEvent(type=kind, sequence_number=self._num_events, **fields)
        self._num_events += 1
        return sse.typed_frame(kind, encoder.encode(event))


def _format_of(body: ResponseRequest) -> dict[str, Any]:
    wanted = None if body.text is None else body.text.format
    if wanted is None:
        return {"type": "text"}
    fields: dict[str, Any] = msgspec.structs.asdict(wanted)
    return {name: value for name, value in fields.items() if value is not None}


def _fault_code(status: int) -> Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]:
    """The specification's word for what ended a stream."""
    if status == 429:
        return "rate_limit_exceeded"
    return "server_error" if status >= 500 else "invalid_prompt"
