"""From the turns and tools of `/v1/messages` to those of a chat completion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from models.errors import InvalidParameter
from server.wire.base import encoder
from server.wire.chat import CalledFunction, EarlierCall, FunctionDefinition, FunctionTool, Message
from server.wire.messages import (
    Block,
    MessageFields,
    PlainText,
    TextBlock,
    ToolDefinition,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)

OWN_TYPES = (None, "custom")
"""Types of tools that the client has; tools of all others are the provider's."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Named:
    """A message of a chat completion, and the field that it was made of."""

    field: str
    message: Message


def messages_of(body: MessageFields) -> list[Named]:
    """Turns of one role that follow each other become one.

    Source: Anthropic API reference, messages: consecutive turns of a role are combined.
    """
    named = [] if body.system is None else [Named(field="system", message=_system(body.system))]
    for index, turn in enumerate(body.messages):
        for message in _messages(turn):
            named.append(Named(field=f"messages[{index}]", message=message))
            if len(named) > 1 and _belong_together(named[-2].message, message):
                named[-2:] = [Named(field=named[-2].field, message=_together(named[-2].message, message))]
    return named


def _system(given: str | Sequence[PlainText]) -> Message:
    return Message(role="system", content=given if isinstance(given, str) else _joined(given))


def _joined(blocks: Sequence[TextBlock | PlainText]) -> str:
    return "\n".join(block.text for block in blocks)


def _messages(turn: Turn) -> Iterator[Message]:
    blocks: Sequence[Block] = [TextBlock(text=turn.content)] if isinstance(turn.content, str) else turn.content
    if turn.role == "assistant":
        yield from _answer(blocks)
        return
    texts: list[TextBlock] = []
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            if texts:
                yield Message(role=turn.role, content=_joined(texts))
            yield Message(role="tool", tool_call_id=block.tool_use_id, content=_result(block))
            texts = []
        elif isinstance(block, TextBlock):
            texts.append(block)
    if texts or not blocks:
        yield Message(role=turn.role, content=_joined(texts))


def _answer(blocks: Sequence[Block]) -> Iterator[Message]:
    """Nothing where only thoughts were sent, which this server leaves out."""
    text = _joined([block for block in blocks if isinstance(block, TextBlock)])
    calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
    if text or calls:
        yield Message(role="assistant", content=text or None, tool_calls=calls or None)


def _call(block: ToolUseBlock) -> EarlierCall:
    arguments = encoder.encode({} if block.input is None else block.input).decode()
    return EarlierCall(id=block.id, type="function", function=CalledFunction(name=block.name, arguments=arguments))


def _result(block: ToolResultBlock) -> str:
    text = block.content if isinstance(block.content, str) else _joined(block.content or ())
    return f"Error: {text}" if block.is_error else text


def _belong_together(first: Message, second: Message) -> bool:
    return first.role == second.role and first.role != "tool"


def _together(first: Message, second: Message) -> Message:
    texts = [message.content for message in (first, second) if isinstance(message.content, str) and message.content]
    calls = [*(first.tool_calls or ()), *(second.tool_calls or ())]
    content = "\n".join(texts) or ("" if first.role != "assistant" else None)
    return msgspec.structs.replace(first, content=content, tool_calls=calls or None)


@dataclass(slots=True, kw_only=True, frozen=True)
class Tools:
    """`fields` says where each tool came from; `left_out` are the provider's own, which this server does not have."""

    tools: list[FunctionTool]
    fields: list[str]
    left_out: list[str]


def tools_of(definitions: Sequence[ToolDefinition]) -> Tools:
    """Raises: InvalidParameter for a tool without a name."""
    found = Tools(tools=[], fields=[], left_out=[])
    for index, tool in enumerate(definitions):
        if tool.type not in OWN_TYPES:
            found.left_out.append(f"tools[{index}]: {tool.type}")
            continue
        if tool.name is None:
            raise InvalidParameter(f"`tools[{index}].name` is required", param=f"tools[{index}].name")
        function = FunctionDefinition(
            name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
        )
        found.tools.append(FunctionTool(function=function, type="function"))
        found.fields.append(f"tools[{index}]")
    return found
