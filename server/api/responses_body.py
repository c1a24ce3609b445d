"""How the bodies of `/v1/responses` look: one object, or typed events in the order the specification gives them."""

import time
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from models.errors import ServingError
from server.api.logprobs import content_logprobs
from server.api.response_items import CallItem, Item, MessageItem, Status, Told
from server.api.turns import Tools
from server.generation.plan import Job, Part
from server.generation.tool_calls import CallPiece, CallReader, Piece
from server.wire import sse
from server.wire.base import UsageReply, encoder
from server.wire.chat import ContentLogprob, FunctionDefinition
from server.wire.errors import status_of
from server.wire.responses import (
    EventType,
    IncompleteDetails,
    InputTokensDetails,
    ResponseEvent,
    ResponseFault,
    ResponseFenhe,
    ResponseReply,
    ResponseRequest,
    ResponseUsage,
    TextReply,
    ToolReply,
)


class ResponseBodyWriter:
    """The bodies of one response: a message, and with `reads_calls` the calls that are taken out of its text."""

    def __init__(self, job: Job, body: ResponseRequest, key: str, *, tools: Tools, reads_calls: bool) -> None:
        self._job = job
        self._body = body
        self._key = key
        self._tools = tools
        self._reads_calls = reads_calls
        self._begin(is_stream=job.is_stream)

    def _begin(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream
        self._num_events = 0
        self._items: list[Item] = []
        self._reader = CallReader()
        self._logprobs: list[ContentLogprob] = []
        """Of tokens whose text is held back; those of calls are left out."""
        self._status: Status = "in_progress"
        self._path = self._job.path

    def opening(self) -> bytes:
        self._begin(is_stream=True)  # a request may be answered a second time, after a shared generation failed
        events = [
            self._event("response.created", response=self._reply([])),
            self._event("response.in_progress", response=self._reply([])),
        ]
        message = b"" if self._reads_calls else self._open(self._new_message())
        return b"".join(events) + message

    def text(self, index: int, text: str) -> bytes:
        return self.part(Part(index=index, texts=[text]))

    def part(self, part: Part) -> bytes:
        self._logprobs += content_logprobs(part.logprobs, self._job.tokenizer.token_name)
        events = b"".join(map(self._piece, self._pieces(part)))
        if part.finish is None:
            return events
        self._status = "incomplete" if part.finish.reason == "length" else "completed"
        self._path = part.finish.path
        if not self._items:
            events += self._open(self._new_message())
        return events + self._close()

    def usage(self, usage: UsageReply) -> bytes:
        """The end of the stream: it carries the whole response."""
        kind: EventType = "response.completed" if self._status == "completed" else "response.incomplete"
        return self._event(kind, response=self._finished(usage))

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes:
        self._begin(is_stream=False)
        self.part(parts[0])
        return encoder.encode(self._finished(usage))

    def failed(self, error: ServingError) -> bytes:
        """The end of a stream that failed."""
        fault = ResponseFault(code=_fault_code(status_of(error)), message=error.message)
        self._status = "incomplete"
        output = [item for item in self._items if not isinstance(item, MessageItem) or item.texts]
        return self._event("response.failed", response=self._reply(output, status="failed", error=fault))

    def _pieces(self, part: Part) -> list[Piece]:
        if not self._reads_calls:
            return [part.text] if part.texts or part.logprobs else []
        return self._reader.push(part.text) + ([] if part.finish is None else self._reader.finish())

    def _piece(self, piece: Piece) -> bytes:
        if isinstance(piece, CallPiece):
            self._logprobs.clear()
            return self._call(piece)
        logprobs, self._logprobs = self._logprobs, []
        opening, item = b"", self._items[-1] if self._items else None
        if not isinstance(item, MessageItem):
            item = self._new_message()
            opening = self._open(item)
        return opening + self._told(item.add(piece, logprobs))

    def _call(self, piece: CallPiece) -> bytes:
        opening = b"" if piece.opens is None else self._open(CallItem(call=piece.opens))
        item = self._items[-1]
        assert isinstance(item, CallItem)
        return opening + (self._told(item.add(piece.arguments)) if piece.arguments else b"")

    def _new_message(self) -> MessageItem:
        num = len(self._items)
        return MessageItem(id=f"msg_{self._key}_{num}" if num else f"msg_{self._key}")

    def _open(self, item: Item) -> bytes:
        closing = self._close()
        self._items.append(item)
        return closing + self._told(item.opening())

    def _close(self) -> bytes:
        """End the last item, which another one follows unless the answer is finished."""
        status: Status = "completed" if self._status == "in_progress" else self._status
        return self._told(self._items[-1].closing(status)) if self._items else b""

    def _told(self, events: list[Told]) -> bytes:
        place = len(self._items) - 1
        return b"".join(self._event(kind, output_index=place, **fields) for kind, fields in events)

    def _finished(self, usage: UsageReply) -> ResponseReply:
        is_cut = self._status == "incomplete"
        return self._reply(
            self._items,
            status=self._status,
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
                fenhe=usage.fenhe,
            ),
        )

    def _reply(self, items: list[Item], **fields: Any) -> ResponseReply:
        body, sampling = self._body, self._job.requests[0].sampling
        common: dict[str, Any] = {
            "status": "in_progress",
            "id": self._job.id,
            "created_at": self._job.created,
            "model": self._job.model,
            "output": [item.item(self._status_of(item)) for item in items],
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": TextReply(format=_format_of(body)),
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tools": [ToolReply(**_tool(tool.function)) for tool in self._tools.tools],
            "user": body.user,
            "fenhe": ResponseFenhe(path=self._path, left_out=self._tools.left_out or UNSET),
        }
        return ResponseReply(**(common | fields))

    def _status_of(self, item: Item) -> Status:
        """Only the last item can be cut off."""
        return self._status if item is self._items[-1] else "completed"

    def _event(self, kind: EventType, **fields: Any) -> bytes:
        if not self._is_stream:
            return b""
        event = ResponseEvent(type=kind, sequence_number=self._num_events, **fields)
        self._num_events += 1
        return sse.typed_frame(kind, encoder.encode(event))


def _tool(function: FunctionDefinition) -> dict[str, Any]:
    return {name: getattr(function, name) for name in ("name", "description", "parameters", "strict")}


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
