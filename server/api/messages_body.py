"""How the bodies of `/v1/messages` look: one message, or the events of a stream in Anthropic's order."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from engines.sequence import Finish, FinishReason
from models.errors import ServingError
from server.generation.plan import Job, Part
from server.generation.tool_calls import Call, CallPiece, CallReader, Piece
from server.generation.tools import HALF, has_half_pair
from server.wire import sse
from server.wire.base import UsageReply, encoder
from server.wire.errors import status_of
from server.wire.json_shape import json_shape
from server.wire.message_errors import message_error
from server.wire.messages import (
    BlockDelta,
    BlockStart,
    BlockStop,
    EndDelta,
    InputDelta,
    MessageDelta,
    MessageEvent,
    MessageFenhe,
    MessageReply,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    StopReason,
    TextDelta,
    TextReply,
    ToolUseReply,
)

MAX_INPUT_DEPTH = 256
"""Of a call's input: who reads and who writes it recurses. A deeper one is empty; a stream has its text."""


class MessageBodyWriter:
    """The bodies of one message. With `reads_calls` tool calls are taken out of the text. `left_out` are tools of the
    request that this server does not have."""

    def __init__(self, job: Job, *, request_id: str, reads_calls: bool, left_out: Sequence[str]) -> None:
        self._job = job
        self._request_id = request_id
        self._reads_calls = reads_calls
        self._left_out = list(left_out) or UNSET
        self._begin()

    def _begin(self) -> None:
        self._reader = CallReader()
        self._num_blocks = 0
        self._text_chunk: sse.TextChunk | None = None
        """Of the text block that is open, if one is."""
        self._is_in_call = False
        self._end = EndDelta(stop_reason="end_turn", stop_sequence=None)

    def opening(self) -> bytes:
        self._begin()  # a request may be answered a second time, after a shared generation failed
        num_prompt_tokens = len(self._job.requests[0].prompt_token_ids)
        usage = MessageUsage(input_tokens=num_prompt_tokens, output_tokens=0, cache_read_input_tokens=0)
        message = self._message([], usage, self._job.path)
        return _frame(MessageStart(message=message)) + _frame(Ping())

    def text(self, index: int, text: str) -> bytes:
        if self._text_chunk is not None and not self._reads_calls:
            return self._text_chunk.fill(text)
        return self.part(Part(index=index, texts=[text]))

    def part(self, part: Part) -> bytes:
        pieces = self._pieces(self._reader, part)
        events = b"".join(map(self._piece, pieces))
        if part.finish is None:
            return events
        self._end = _end_of(part.finish, self._reader)
        return events + self._close_block()

    def usage(self, usage: UsageReply) -> bytes:
        """The end of the stream."""
        return _frame(MessageDelta(delta=self._end, usage=_usage(usage))) + _frame(MessageStop())

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes:
        part, reader = parts[0], CallReader()
        assert part.finish is not None
        text = "".join(piece for piece in self._pieces(reader, part) if isinstance(piece, str))
        content: list[TextReply | ToolUseReply] = [TextReply(text=text)] if text else []
        content += [_tool_use(call) for call in reader.calls]
        end = _end_of(part.finish, reader)
        message = self._message(content, _usage(usage), part.finish.path)
        return encoder.encode(
            msgspec.structs.replace(message, stop_reason=end.stop_reason, stop_sequence=end.stop_sequence)
        )

    def failed(self, error: ServingError) -> bytes:
        body = message_error(error.message, status_of(error), error.code, self._request_id)
        return sse.typed_frame("error", encoder.encode(body))

    def _pieces(self, reader: CallReader, part: Part) -> list[Piece]:
        if not self._reads_calls:
            return [part.text] if part.texts else []
        return reader.push(part.text) + ([] if part.finish is None else reader.finish())

    def _piece(self, piece: Piece) -> bytes:
        if isinstance(piece, str):
            return self._text(piece)
        return self._call(piece)

    def _text(self, text: str) -> bytes:
        opening = b""
        if self._text_chunk is None:
            opening = self._open_block(TextReply(text=""))
            delta = BlockDelta(index=self._num_blocks - 1, delta=TextDelta(text=sse.TEXT_MARK))
            self._text_chunk = sse.text_chunk(delta, "content_block_delta")
        return opening + self._text_chunk.fill(text)

    def _call(self, piece: CallPiece) -> bytes:
        opening = b""
        if piece.opens is not None:
            opening = self._open_block(ToolUseReply(id=_id(piece.opens), name=piece.opens.name, input={}))
            self._is_in_call = True
        if not piece.arguments:
            return opening
        delta = InputDelta(partial_json=piece.arguments)
        return opening + _frame(BlockDelta(index=self._num_blocks - 1, delta=delta))

    def _open_block(self, block: TextReply | ToolUseReply) -> bytes:
        closing = self._close_block()
        self._num_blocks += 1
        return closing + _frame(BlockStart(index=self._num_blocks - 1, content_block=block))

    def _close_block(self) -> bytes:
        if self._text_chunk is None and not self._is_in_call:
            return b""
        self._text_chunk, self._is_in_call = None, False
        return _frame(BlockStop(index=self._num_blocks - 1))

    def _message(self, content: list[TextReply | ToolUseReply], usage: MessageUsage, path: str) -> MessageReply:
        fenhe = MessageFenhe(path=path, left_out=self._left_out)
        return MessageReply(id=self._job.id, model=self._job.model, content=content, usage=usage, fenhe=fenhe)


def _frame(event: MessageEvent) -> bytes:
    kind = event.__struct_config__.tag
    assert isinstance(kind, str)
    return sse.typed_frame(kind, encoder.encode(event))


def _usage(usage: UsageReply) -> MessageUsage:
    """Source: Anthropic API reference: `input_tokens` are those that did not come from the cache."""
    num_cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - num_cached,
        output_tokens=usage.completion_tokens,
        cache_read_input_tokens=num_cached,
        fenhe=usage.fenhe,
    )


def _end_of(finish: Finish, reader: CallReader) -> EndDelta:
    """`tool_use` only when every call is whole: a call that was cut off must not be run."""
    if finish.reason is FinishReason.LENGTH:
        return EndDelta(stop_reason="max_tokens", stop_sequence=None)
    reason: StopReason = "end_turn" if finish.stop is None else "stop_sequence"
    if reader.has_whole_calls:
        return EndDelta(stop_reason="tool_use", stop_sequence=None)
    return EndDelta(stop_reason=reason, stop_sequence=finish.stop)


def _tool_use(call: Call) -> ToolUseReply:
    return ToolUseReply(id=_id(call), name=call.name, input=_input(call))


def _id(call: Call) -> str:
    return f"toolu_{call.id.removeprefix('call_')}"


def _input(call: Call) -> dict[str, Any]:
    """Half surrogate pairs in it, which cannot be sent, become U+FFFD."""
    if json_shape(call.arguments.encode(errors="replace")).depth > MAX_INPUT_DEPTH:
        return {}
    try:
        given = json.loads(call.arguments)
        if has_half_pair(call.arguments, given):
            given = json.loads(HALF.sub("\ufffd", json.dumps(given, ensure_ascii=False)))
    except ValueError:
        return {}  # it was cut off
    return given if isinstance(given, dict) else {}
