"""What chat completions are made of for other APIs: messages and tools that know which field of a request they were."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from models.errors import InvalidParameter
from server.wire.chat import TOOL_NAME, EarlierCall, FunctionDefinition, FunctionTool, JsonSchema, Message

MAX_LEFT_OUT, MAX_TYPE_CHARS = 128, 64
_TOOL_NAME = re.compile(TOOL_NAME)


@dataclass(slots=True, kw_only=True, frozen=True)
class Named:
    """A message of a chat completion, and the field that it was made of."""

    field: str
    message: Message


class Turns:
    """The messages of a conversation, as they are added. Those of one role that follow each other are joined to one if
    the role is one of `joins`; once, at the end, for there may be tens of thousands."""

    def __init__(self, joins: Sequence[str]) -> None:
        self._joins = joins
        self._turns: list[tuple[str, list[Message]]] = []

    def add(self, field: str, message: Message) -> None:
        before = self._turns[-1][1] if self._turns else None
        if before is not None and before[0].role == message.role and message.role in self._joins:
            before.append(message)
        else:
            self._turns.append((field, [message]))

    def named(self) -> list[Named]:
        return [Named(field=field, message=_joined(messages)) for field, messages in self._turns]


def _joined(messages: Sequence[Message]) -> Message:
    if len(messages) == 1:
        return messages[0]
    texts = [one.content for one in messages if isinstance(one.content, str) and one.content]
    calls = [call for one in messages for call in one.tool_calls or ()]
    content = "\n".join(texts) or ("" if messages[0].role != "assistant" else None)
    return msgspec.structs.replace(messages[0], content=content, tool_calls=calls or None)


def assistant(text: str, calls: list[EarlierCall]) -> Message:
    return Message(role="assistant", content=text or None, tool_calls=calls or None)


def require_messages(named: Sequence[Named], field: str) -> list[Message]:
    """Raises: InvalidParameter where nothing is left of a request's messages."""
    if not named:
        raise InvalidParameter(f"`{field}`: there is no text in it", param=field)
    return [one.message for one in named]


@dataclass(slots=True, kw_only=True, frozen=True)
class Tools:
    """`fields` says where each tool came from; `left_out` are those that this server does not have, with their type."""

    tools: list[FunctionTool] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(
        self, field: str, name: str | None, description: str | None, schema: JsonSchema | None, strict: bool | None
    ) -> None:
        """Raises: InvalidParameter for a name that is missing, or cannot be one."""
        if name is None:
            raise InvalidParameter(f"`{field}.name` is required", param=f"{field}.name")
        if _TOOL_NAME.fullmatch(name) is None:
            raise InvalidParameter(
                f"`{field}.name`: {name[:200]!r} is no name; use at most 128 letters, digits and `_ - . : /`",
                param=f"{field}.name",
            )
        function = FunctionDefinition(name=name, description=description, parameters=schema, strict=strict)
        self.tools.append(FunctionTool(function=function, type="function"))
        self.fields.append(field)

    def leave_out(self, field: str, kind: str) -> None:
        """Only the first ones are named."""
        if len(self.left_out) < MAX_LEFT_OUT:
            self.left_out.append(f"{field}: {kind[:MAX_TYPE_CHARS]}")

    def only(self, names: Sequence[str]) -> "Tools":
        """Those of these names."""
        wanted = frozenset(names)
        kept = [
            (tool, field) for tool, field in zip(self.tools, self.fields, strict=True) if tool.function.name in wanted
        ]
        return Tools(tools=[tool for tool, _ in kept], fields=[field for _, field in kept], left_out=self.left_out)

    def require(self) -> None:
        """Raises: InvalidParameter where one must be called and there is none."""
        if not self.tools:
            left_out = f"; left out are {', '.join(self.left_out)[:500]}" if self.left_out else ""
            raise InvalidParameter(f"`tool_choice` needs `tools`{left_out}", param="tool_choice")
