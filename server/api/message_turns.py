"""From the turns and tools of `/v1/messages` to those of a chat completion."""

from collections.abc import Iterator, Sequence

from models.errors import InvalidParameter
from server.api.turns import Named, Tools, Turns, assistant
from server.wire.base import encoder
from server.wire.chat import CalledFunction, EarlierCall, Message
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


def messages_of(body: MessageFields) -> list[Named]:
    """Turns of one role that follow each other become one.

    Source: Anthropic API reference, messages: consecutive turns of a role are combined.
    """
    turns = Turns(joins=("user", "assistant", "system"))
    if body.system is not None:
        turns.add("system", _system(body.system))
    for index, turn in enumerate(body.messages):
        for message in _messages(turn, f"messages[{index}]"):
            turns.add(f"messages[{index}]", message)
    return turns.named()


def _system(given: str | Sequence[PlainText]) -> Message:
    return Message(role="system", content=given if isinstance(given, str) else _joined(given))


def _joined(blocks: Sequence[TextBlock | PlainText]) -> str:
    return "\n".join(block.text for block in blocks)


def _messages(turn: Turn, field: str) -> Iterator[Message]:
    """Raises: InvalidParameter for a call that is not the assistant's, or a result that is."""
    blocks: Sequence[Block] = [TextBlock(text=turn.content)] if isinstance(turn.content, str) else turn.content
    misplaced = ToolResultBlock if turn.role == "assistant" else ToolUseBlock
    if any(isinstance(block, misplaced) for block in blocks):
        raise InvalidParameter(f"`{field}.content`: {turn.role} turns have no such blocks of tools", param=field)
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
        yield assistant(text, calls)


def _call(block: ToolUseBlock) -> EarlierCall:
    arguments = encoder.encode({} if block.input is None else block.input).decode()
    return EarlierCall(id=block.id, type="function", function=CalledFunction(name=block.name, arguments=arguments))


def _result(block: ToolResultBlock) -> str:
    text = block.content if isinstance(block.content, str) else _joined(block.content or ())
    return f"Error: {text}" if block.is_error else text


def tools_of(definitions: Sequence[ToolDefinition]) -> Tools:
    """Raises: InvalidParameter for a tool without a name."""
    tools = Tools()
    for index, tool in enumerate(definitions):
        if tool.type in OWN_TYPES:
            tools.add(f"tools[{index}]", tool.name, tool.description, tool.input_schema, tool.strict)
        else:
            tools.leave_out(f"tools[{index}]", tool.type or "")
    return tools
