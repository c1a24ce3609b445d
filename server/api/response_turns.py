"""From the input and tools of `/v1/responses` to messages and tools of a chat completion."""

from collections.abc import Sequence
from typing import Literal

from models.errors import InvalidParameter
from server.api.turns import Named, Tools, Turns, assistant
from server.wire.chat import CalledFunction, EarlierCall, FunctionName, Message, NamedToolChoice
from server.wire.response_input import InputItem, InputText
from server.wire.responses import AllowedTools, FunctionChoice, ResponseRequest, ResponseTool, ResponseToolChoice

JOINED = ("assistant",)
"""A message and the calls after it are one turn."""

Choice = Literal["none", "auto", "required"] | NamedToolChoice | None


def messages_of(body: ResponseRequest) -> list[Named]:
    """Source: OpenAI API reference, responses: `instructions` are a system message before everything else.

    Raises: InvalidParameter for an item that lacks what it is.
    """
    turns = Turns(JOINED)
    if body.instructions is not None:
        turns.add("instructions", Message(role="system", content=body.instructions))
    if isinstance(body.input, str):
        turns.add("input", Message(role="user", content=body.input))
        return turns.named()
    for index, item in enumerate(body.input):
        message = _message(item, f"input[{index}]")
        if message is not None:
            turns.add(f"input[{index}]", message)
    return turns.named()


def _message(item: InputItem, field: str) -> Message | None:
    """None for what is left out."""
    match item.type:
        case "message":
            return _said(item, field)
        case "function_call":
            function = CalledFunction(name=_required(item.name, f"{field}.name"), arguments=item.arguments or "")
            call = EarlierCall(id=_required(item.call_id, f"{field}.call_id"), type="function", function=function)
            return assistant("", [call])
        case "function_call_output":
            call_id = _required(item.call_id, f"{field}.call_id")
            if item.output is None:
                raise _missing(f"{field}.output")
            return Message(role="tool", tool_call_id=call_id, content=_text(item.output))
    return None


def _said(item: InputItem, field: str) -> Message:
    if item.role is None or item.content is None:
        raise _missing(f"{field}.role" if item.role is None else f"{field}.content")
    text = _text(item.content)
    return assistant(text, []) if item.role == "assistant" else Message(role=item.role, content=text)


def _required(value: str | None, param: str) -> str:
    """Raises: InvalidParameter."""
    if value is None:
        raise _missing(param)
    return value


def _missing(param: str) -> InvalidParameter:
    return InvalidParameter(f"`{param}` is required", param=param)


def _text(content: str | Sequence[InputText]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def tools_of(definitions: Sequence[ResponseTool], choice: ResponseToolChoice | None) -> Tools:
    """The functions that may be called. Raises: InvalidParameter for one without a name."""
    tools = Tools()
    for index, tool in enumerate(definitions):
        if tool.type == "function":
            tools.add(f"tools[{index}]", tool.name, tool.description, tool.parameters, tool.strict)
        else:
            tools.leave_out(f"tools[{index}]", tool.type)
    if isinstance(choice, AllowedTools):
        return tools.only([tool.name for tool in choice.tools if tool.type == "function" and tool.name])
    return tools


def choice_of(body: ResponseRequest, tools: Tools) -> Choice:
    """Raises: InvalidParameter for a choice of tools where there are none."""
    choice = body.tool_choice
    if isinstance(choice, FunctionChoice):
        tools.require()
        return NamedToolChoice(function=FunctionName(name=choice.name), type="function")
    mode = choice.mode if isinstance(choice, AllowedTools) else choice
    if mode == "required":
        tools.require()
    return mode if tools.tools else None
