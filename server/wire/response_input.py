"""Items of the input of `/v1/responses`: messages, calls and their results, in whatever shape clients send them back.

Items that an earlier answer of another server had and no student can read (`web_search_call`, ...) are left out; what a
user or a tool says and no student can read (an image, a file) is refused by name.
"""

import json
from typing import Any, Literal

from models.errors import UnsupportedField
from server.wire.base import LooseBody
from server.wire.history import text_of, text_parts
from server.wire.ignored import Ignored
from server.wire.raw_body import Raw


class InputText(LooseBody, frozen=True, kw_only=True):
    """A part of a message, or of what a tool returned."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = None
    logprobs: Any = None


class InputItem(LooseBody, frozen=True, kw_only=True):
    """A message has `role` and `content`, a call `call_id`, `name` and `arguments`, its result `call_id` and `output`;
    `reasoning` is left out. The others come with earlier answers and have no effect here."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputText] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputText] | None = None
    id: Any = None
    status: Any = None
    phase: Any = None


CALL, OUTPUT = "_call", "_call_output"
CUSTOM = "custom_tool_call"
WRITTEN = ("function_call", CUSTOM)
"""Calls whose results are text."""
SCREEN = "computer_call_output"
REFUSED = {
    "item_reference": "nothing is stored by this server; send the item itself",
    SCREEN: "this student reads text only",
}
LEFT_OUT: Raw = {"type": "reasoning"}


def adapt_item(raw: Raw, place: str, ignored: Ignored) -> Raw:
    """Raises: UnsupportedField."""
    kind = raw.get("type") or "message"
    if not isinstance(kind, str):
        return raw
    if kind == "message":
        return _message(raw, place, ignored)
    if kind.endswith(OUTPUT) and kind != SCREEN:
        return _result(raw, kind, place, ignored)
    if kind == "function_call" or (kind.endswith(CALL) and "call_id" in raw):
        return _call(raw, kind)
    if kind in REFUSED or not (kind == "reasoning" or "id" in raw):
        why = REFUSED.get(kind, "leave it out")
        name = f"{place}.type"
        raise UnsupportedField(f"`{name}`: items of type {kind[:100]!r} are not supported; {why}", param=name)
    ignored.add(kind, place)
    return LEFT_OUT


def _message(raw: Raw, place: str, ignored: Ignored) -> Raw:
    content, is_answer = raw.get("content"), raw.get("role") == "assistant"
    if isinstance(content, list):
        content = text_parts(content, f"{place}.content", ignored, is_answer=is_answer)
    return {**raw, "type": "message", "content": "" if content is None and is_answer else content}


def _call(raw: Raw, kind: str) -> Raw:
    """A call of a function; one of another tool by its name, or else its type, with all that it says as arguments."""
    if kind in WRITTEN:
        arguments = raw.get("input" if kind == CUSTOM else "arguments")
    else:
        arguments = {name: value for name, value in raw.items() if name not in ("type", "id", "call_id", "status")}
    name = text_of(raw.get("name")) or kind.removesuffix(CALL)
    call_id = text_of(raw.get("call_id")) or text_of(raw.get("id"))
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": text_of(arguments)}


def _result(raw: Raw, kind: str, place: str, ignored: Ignored) -> Raw:
    output = raw.get("output")
    if isinstance(output, list) and kind.removesuffix("_output") in WRITTEN:
        output = text_parts(output, f"{place}.output", ignored, is_answer=False)
    elif not isinstance(output, str):
        output = "" if output is None else json.dumps(output, ensure_ascii=False)
    return {"type": "function_call_output", "call_id": text_of(raw.get("call_id")), "output": output}
