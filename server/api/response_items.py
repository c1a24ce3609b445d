"""The items that a response consists of, as far as they have been written: a message, or calls of functions."""

from dataclasses import dataclass, field
from typing import Any, Literal

from server.generation.tool_calls import Call
from server.wire.chat import ContentLogprob
from server.wire.responses import EventType, OutputCall, OutputItem, OutputMessage, OutputText

Status = Literal["in_progress", "completed", "incomplete"]
Told = tuple[EventType, dict[str, Any]]
"""An event and its fields beside `output_index` and the number."""


@dataclass(slots=True, kw_only=True)
class MessageItem:
    """A message of one part."""

    id: str
    texts: list[str] = field(default_factory=list)
    logprobs: list[ContentLogprob] = field(default_factory=list)

    def item(self, status: Status) -> OutputItem:
        return OutputMessage(id=self.id, status=status, content=[self._part()])

    def opening(self) -> list[Told]:
        empty = OutputMessage(id=self.id, status="in_progress", content=[])
        return [
            ("response.output_item.added", {"item": empty}),
            ("response.content_part.added", self._place() | {"part": OutputText(text="")}),
        ]

    def add(self, text: str, logprobs: list[ContentLogprob]) -> list[Told]:
        self.texts.append(text)
        self.logprobs += logprobs
        return [("response.output_text.delta", self._place() | {"delta": text, "logprobs": logprobs})]

    def closing(self, status: Status) -> list[Told]:
        return [
            ("response.output_text.done", self._place() | {"text": "".join(self.texts), "logprobs": self.logprobs}),
            ("response.content_part.done", self._place() | {"part": self._part()}),
            ("response.output_item.done", {"item": self.item(status)}),
        ]

    def _part(self) -> OutputText:
        return OutputText(text="".join(self.texts), logprobs=self.logprobs)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "content_index": 0}


@dataclass(slots=True, kw_only=True)
class CallItem:
    call: Call
    arguments: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"fc_{self.call.id.removeprefix('call_')}"

    def item(self, status: Status) -> OutputItem:
        arguments = "".join(self.arguments)
        return OutputCall(
            id=self.id, call_id=self.call.id, name=self.call.name, arguments=arguments, status=self._status(status)
        )

    def opening(self) -> list[Told]:
        return [("response.output_item.added", {"item": self.item("in_progress")})]

    def add(self, arguments: str) -> list[Told]:
        self.arguments.append(arguments)
        return [("response.function_call_arguments.delta", {"item_id": self.id, "delta": arguments})]

    def closing(self, status: Status) -> list[Told]:
        told = {"item_id": self.id, "name": self.call.name, "arguments": "".join(self.arguments)}
        return [
            ("response.function_call_arguments.done", told),
            ("response.output_item.done", {"item": self.item(status)}),
        ]

    def _status(self, status: Status) -> Status:
        """A call that is whole is completed, whatever comes after it."""
        return "completed" if status == "incomplete" and self.call.is_whole else status


Item = MessageItem | CallItem
