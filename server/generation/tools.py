"""Tools of a chat request: what is checked, the grammar of their calls, and how a prompt describes them.

A call is written `<tool_call>`, a line with `{"name": ..., "arguments": ...}`, `</tool_call>`: the form that the Qwen
and Hermes families were trained on. Templates that write it themselves get tools and calls as they are; for all
others they become plain text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from engines.grammar import literal
from engines.schema_loosening import Followed, Loosens, SchemaRule, whole
from engines.schema_parts import at
from models.errors import InvalidParameter
from server.generation.closing import closed
from server.generation.json_schema import held_part, refused
from server.settings.config import Limits
from server.wire.chat import ChatRequest, FunctionDefinition, Message, NamedToolChoice
from server.wire.json_shape import json_shape

OPEN_MARK = "<tool_call>"
CALL_START = '\n{"name": "'
ARGUMENTS_START = '", "arguments": '
CALL_END = "}\n</tool_call>"
OBJECT: dict[str, Any] = {"type": "object"}
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
ARGUMENTS = "arguments"
"""What the names of rules for arguments begin with."""
MAX_TOOLS = 128
"""Source: OpenAI API reference, chat: at most 128 functions."""
MAX_NODES = 50_000
"""Arrays and objects in the arguments of an earlier call that are read: reading and writing them stops all other
threads. More are text."""
MAX_DEPTH = 64
"""Of those arguments: whoever goes through them recurses, and so do templates. Deeper ones are text."""
HALF = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair; a whole one is one character."""
HALF_SPELT = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON spells one, whole or not."""

ToolChoice = str | NamedToolChoice | None


def functions_of(body: ChatRequest) -> tuple[FunctionDefinition, ...]:
    """The functions that may be called: none with `tool_choice: none`, which also leaves them out of the prompt.

    Raises: InvalidParameter.
    """
    choice = body.tool_choice
    if choice == "none":
        return ()
    functions = [tool.function for tool in body.tools or ()]
    if not functions and choice not in (None, "auto"):
        raise InvalidParameter("`tool_choice` needs `tools`", param="tool_choice")
    if len(functions) > MAX_TOOLS:
        raise InvalidParameter(f"`tools`: {len(functions)} are more than {MAX_TOOLS}", param="tools")
    names = set[str]()
    for index, function in enumerate(functions):
        if function.name in names:
            param = f"tools[{index}].function.name"
            raise InvalidParameter(f"`{param}`: there are two functions {function.name!r}", param=param)
        names.add(function.name)
    return tuple(functions)


def argument_rules(functions: Sequence[FunctionDefinition], choice: ToolChoice, limits: Limits) -> list[Followed]:
    """The schemas of the arguments of those functions that may be called, as rules of a grammar.

    Raises: InvalidParameter, UnsupportedField for what must be followed to the letter and cannot be.
    """
    return [_argument_rule(function, index, limits.max_schema_bytes) for index, function in _offered(functions, choice)]


def _argument_rule(function: FunctionDefinition, index: int, max_bytes: int) -> Followed:
    where = f"tools[{index}].function.parameters"
    loosens = Loosens.NOTHING if function.strict else Loosens.ANYTHING
    held = held_part(parameters_of(function), where, loosens, max_bytes)
    types = held.schema.get("type", "object")
    if "object" not in ([types] if isinstance(types, str) else types):
        raise InvalidParameter(f"`{where}` must be a schema of `type` object", param=where)
    open_schema = held.schema if _refers_to_object(held.schema) else {**held.schema, "type": "object"}
    schema = closed(open_schema, max_bytes)
    rule = SchemaRule.of(schema or OBJECT, name=f"{ARGUMENTS}{index}", where=where, loosens=loosens)
    if schema is not None:
        return Followed(rule=rule, loosened=held.loosened)
    problem = f"with the properties of all its parts it has more than {max_bytes} bytes (limits.max_schema_bytes)"
    if loosens is Loosens.NOTHING:
        raise refused(where, "", problem)
    return whole(rule, problem)


def _refers_to_object(schema: Mapping[str, Any]) -> bool:
    """Nothing may be added to a reference to an object, which may hold that reference: the library would refuse it."""
    reference = schema.get("$ref")
    target = at(schema, unquote(reference[1:])) if isinstance(reference, str) and "type" not in schema else None
    return isinstance(target, Mapping) and target.get("type") == "object"


def _offered(functions: Sequence[FunctionDefinition], choice: ToolChoice) -> list[tuple[int, FunctionDefinition]]:
    """The functions that may be called, by their place in `tools`. Raises: InvalidParameter for an unknown one."""
    if isinstance(choice, NamedToolChoice):
        found = _find_named(functions, choice)
        return [(index, one) for index, one in enumerate(functions) if one is found]
    return list(enumerate(functions))


def _find_named(functions: Sequence[FunctionDefinition], choice: NamedToolChoice) -> FunctionDefinition:
    for function in functions:
        if function.name == choice.function.name:
            return function
    known = ", ".join(function.name for function in functions)
    raise InvalidParameter(
        f"`tool_choice.function.name`: {choice.function.name[:100]!r} is not in `tools`: {known[:500]}",
        param="tool_choice.function.name",
    )


def parameters_of(function: FunctionDefinition) -> dict[str, Any]:
    """Source: OpenAI API reference, chat: a function without `parameters` takes none."""
    return NO_PARAMETERS if function.parameters is None else function.parameters


def calls_rules(
    functions: Sequence[FunctionDefinition], choice: ToolChoice, *, is_parallel: bool, other: str | None
) -> str:
    """The grammar's text without the schemas of `argument_rules`: calls alone, or `other` (a rule, None for any text,
    also before the first call) instead of them.

    Raises: InvalidParameter for a choice that is not among the functions.
    """
    is_parallel = is_parallel and not isinstance(choice, NamedToolChoice)
    more = f" ({literal(chr(10) + OPEN_MARK)} call)*" if is_parallel else ""
    if choice == "required" or isinstance(choice, NamedToolChoice):
        rules = [f"start: {literal(OPEN_MARK)} call{more}"]
    elif other is not None:
        rules = [f"start: {other} | {literal(OPEN_MARK)} call{more}"]
    else:
        # The lazy head ends at the first mark: no text that holds one can go on as text.
        rules = [f"start: TEXT | head call{more}", f"head[lazy]: TEXT {literal(OPEN_MARK)}", r"TEXT: /(.|\n)*/"]
    return "\n".join([*rules, *_call_rules(_offered(functions, choice))])


def _call_rules(offered: Sequence[tuple[int, FunctionDefinition]]) -> list[str]:
    names = " | ".join(f"call{index}" for index, _ in offered)
    return [
        f"call: {literal(CALL_START)} ({names}) {literal(CALL_END)}",
        *(f"call{i}: {literal(one.name + ARGUMENTS_START)} {ARGUMENTS}{i}" for i, one in offered),
    ]


def tools_for_template(functions: Sequence[FunctionDefinition]) -> list[dict[str, Any]]:
    """Tools in the form that chat templates expect."""
    return [
        {
            "type": "function",
            "function": {
                "name": function.name,
                **({} if function.description is None else {"description": function.description}),
                "parameters": parameters_of(function),
            },
        }
        for function in functions
    ]


def check_turns(messages: Sequence[Message]) -> None:
    """Calls belong to the assistant, and a tool's answer to a call before it. Raises: InvalidParameter."""
    known: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.tool_calls and message.role != "assistant":
            raise _misplaced(f"{where}.tool_calls", "only assistant messages have it")
        if message.tool_call_id is not None and message.role != "tool":
            raise _misplaced(f"{where}.tool_call_id", "only tool messages have it")
        if message.role == "tool" and message.tool_call_id is None and "" not in known:
            raise _misplaced(f"{where}.tool_call_id", "a tool message says which call it answers")
        if message.tool_call_id is not None and message.tool_call_id not in known:
            raise _misplaced(f"{where}.tool_call_id", "no earlier `tool_calls` has this id")
        known |= {call.id for call in message.tool_calls or ()}


def _misplaced(param: str, why: str) -> InvalidParameter:
    return InvalidParameter(f"`{param}`: {why}", param=param)


def calls_for_template(message: Message) -> list[dict[str, Any]]:
    """Calls in the form that chat templates expect. Arguments that are no JSON object are text."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
        }
        for call in message.tool_calls or ()
    ]


def with_objects(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages for a template that takes no text for arguments: it becomes the only one of an object."""
    return [
        message
        if "tool_calls" not in message
        else {**message, "tool_calls": list(map(_with_object, message["tool_calls"]))}
        for message in messages
    ]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        return call
    return {**call, "function": {**call["function"], "arguments": {"arguments": arguments}}}


def _arguments(text: str) -> dict[str, Any] | str:
    """What a call was given: an object if its text is JSON of one, else the text: it may have been cut off, or spell
    half a surrogate pair, which no prompt can have in it."""
    shape = json_shape(text.encode(errors="replace"))
    if shape.num_nodes > MAX_NODES or shape.depth > MAX_DEPTH:
        return text
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) and not has_half_pair(text, arguments) else text


def has_half_pair(text: str, value: object) -> bool:
    """Whether half a surrogate pair came out of a JSON text."""
    return HALF_SPELT.search(text) is not None and HALF.search(json.dumps(value, ensure_ascii=False)) is not None


def as_text(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages for a template without tools: these, in the form that other templates expect, calls and results become
    text."""
    plain: list[dict[str, Any]] = []
    before = None
    for message in messages:
        if message["role"] == "tool":
            _add_result(plain, message["content"], follows_result=before == "tool")
        elif "tool_calls" in message:
            calls = [_call_text(call["function"]) for call in message["tool_calls"]]
            plain.append({"role": message["role"], "content": "\n".join(filter(None, [message["content"], *calls]))})
        else:
            plain.append(message)
        before = message["role"]
    return _with_instructions(plain, tools) if tools else plain


def _add_result(plain: list[dict[str, Any]], content: str, *, follows_result: bool) -> None:
    """Results that follow each other share one user message: templates want the roles to alternate."""
    text = f"<tool_response>\n{content}\n</tool_response>"
    if follows_result:
        plain[-1] = {**plain[-1], "content": f"{plain[-1]['content']}\n{text}"}
    else:
        plain.append({"role": "user", "content": text})


def _call_text(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f"{OPEN_MARK}{CALL_START}{function['name']}{ARGUMENTS_START}{arguments}{CALL_END}"


def _with_instructions(messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    text = instructions(tools)
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def instructions(tools: Sequence[dict[str, Any]]) -> str:
    """The system text that describes functions and how to call them."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    form = f"{OPEN_MARK}{CALL_START}NAME{ARGUMENTS_START}{{...}}{CALL_END}"
    return "\n".join(
        [
            "These functions can be called, one JSON description a line:",
            *lines,
            "A function is called by writing its name and its arguments in this form, and nothing after it:",
            form,
        ]
    )
