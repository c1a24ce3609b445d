"""Messages that were sent before, in the shapes that clients and other servers give them, in the one shape of ours.

An earlier answer is what happened: whatever it contained, it is never a reason to refuse the conversation. What a user,
a system or a tool says and no student can read (an image, a file) would change the answer, and is refused by name.
"""

import json
from typing import Any

from models.errors import UnsupportedField
from server.wire.ignored import Ignored
from server.wire.raw_body import Raw

TEXT_PARTS = ("text", "input_text", "output_text")
CONTENT = frozenset(
    (
        "attachments",
        "audio",
        "documents",
        "experimental_attachments",
        "file",
        "file_ids",
        "files",
        "image",
        "image_url",
        "image_urls",
        "images",
        "input_audio",
        "video",
        "video_url",
        "videos",
    )
)
"""Keys beside `content` under which clients put what a message says."""


def adapt_message(raw: Raw, place: str, ignored: Ignored) -> Raw:
    """Raises: UnsupportedField for content that is not text, except in what an assistant said."""
    message = _without_legacy_call(raw)
    is_answer = message.get("role") == "assistant"
    if not is_answer:
        _refuse_content(message, place)
    content = message.get("content")
    if isinstance(content, list):
        message = {**message, "content": text_parts(content, f"{place}.content", ignored, is_answer=is_answer)}
    return _with_thoughts(message, place, ignored)


def _with_thoughts(raw: Raw, place: str, ignored: Ignored) -> Raw:
    """`reasoning_content` is text or absent; some servers call it `reasoning`."""
    thoughts = raw.get("reasoning_content", raw.get("reasoning"))
    if thoughts is None:
        return raw
    message = {name: value for name, value in raw.items() if name not in ("reasoning_content", "reasoning")}
    if isinstance(thoughts, str):
        return {**message, "reasoning_content": thoughts}
    ignored.add("reasoning_content", place)
    return message


def _without_legacy_call(raw: Raw) -> Raw:
    """Source: OpenAI API reference, chat: `function_call` and the role `function`, which `tool_calls` and `tool`
    replaced. They have no ids: a result belongs to the call of the same function."""
    if raw.get("role") == "function":
        rest = {name: value for name, value in raw.items() if name != "name"}
        return {**rest, "role": "tool", "tool_call_id": _legacy_id(raw.get("name"))}
    call = raw.get("function_call")
    if raw.get("role") != "assistant" or not isinstance(call, dict):
        return raw
    rest = {name: value for name, value in raw.items() if name != "function_call"}
    earlier = raw.get("tool_calls")
    made = {"id": _legacy_id(call.get("name")), "type": "function", "function": call}
    return {**rest, "tool_calls": [*(earlier if isinstance(earlier, list) else ()), made]}


def _legacy_id(name: object) -> str:
    return f"function:{name}"


def _refuse_content(message: Raw, place: str) -> None:
    for name in sorted(CONTENT & message.keys()):
        if message[name]:
            where = f"{place}.{name}"
            raise UnsupportedField(f"`{where}` is not supported: this student reads text only", param=where)


def text_parts(parts: list[Any], place: str, ignored: Ignored, *, is_answer: bool) -> list[Any]:
    """Parts that say something in words, as text parts."""
    kept = []
    for index, part in enumerate(parts):
        where = f"{place}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else "text"
        if kind in TEXT_PARTS or kind is None:
            kept.append(_text_part(part, is_answer=is_answer))
        elif kind == "refusal":
            kept.append({"type": "text", "text": part.get("refusal") or ""})
        elif is_answer and isinstance(kind, str):
            ignored.add(kind, where)
        else:
            raise UnsupportedField(
                f"`{where}.type`: content of type {str(kind)[:100]!r} is not supported: this student reads text only",
                param=f"{where}.type",
            )
    return kept


def _text_part(part: Any, *, is_answer: bool) -> Any:
    if not isinstance(part, dict):
        return part
    part = {**part, "type": "text"}
    return {**part, "text": ""} if is_answer and part.get("text") is None else part


def adapt_call(raw: Raw, place: str, ignored: Ignored) -> Raw:
    """A call that was made: without an id or a type, or of a custom tool, whose input is any text."""
    call = {**raw, "type": "function", "id": text_of(raw.get("id"))}
    custom = raw.get("custom")
    if "function" not in raw and isinstance(custom, dict):
        call = {name: value for name, value in call.items() if name != "custom"}
        call["function"] = {"name": custom.get("name"), "arguments": custom.get("input")}
    return call


def adapt_called_function(raw: Raw, place: str, ignored: Ignored) -> Raw:
    """`arguments` are text whatever they are: cut off, no JSON at all, or an object as some servers give them."""
    return {**raw, "name": text_of(raw.get("name")), "arguments": text_of(raw.get("arguments"))}


def text_of(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
