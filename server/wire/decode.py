"""From the bytes of a body to a request struct: what is unknown or not supported is refused by name.

Most bodies pass the typed decoder at once. One that it refuses is read a second time, to say what is wrong, or to drop
fields whose value has no effect (`"tools": null`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from models.errors import BadRequest, InvalidParameter, ServingError, UnsupportedField
from router.decision import Priority, Quality
from router.tasks import TASKS
from server.settings.suggestions import find_near
from server.wire.base import RequestBody, any_decoder
from server.wire.errors import shorten

W = TypeVar("W", bound=RequestBody)

HARMLESS = {
    "user": "names the end user for abuse reports; nothing here reads it",
    "metadata": "labels for stored completions; nothing is stored",
    "store": "only null and false: nothing is stored",
    "service_tier": "only auto and default: there is one tier",
    "safety_identifier": "names the end user for abuse reports; nothing here reads it",
    "prompt_cache_key": "a hint for cache placement; the prefix cache goes by content",
    "prompt_cache_retention": "a hint for cache life; the prefix cache goes by use and memory",
}
"""Fields accepted although nothing reads them, and why ignoring them cannot change an answer."""

UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "functions": (),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "suffix": ("",),
    "best_of": (1,),
    "stop_token_ids": ([],),
    "min_tokens": (0,),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "skip_special_tokens": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "truncation": ("disabled",),
    "reasoning": ({}, {"effort": "none"}),
    "max_tool_calls": (),
}
"""Fields of the API and of other servers that would change the answer, with values that have no effect, beside null."""

CHAT_ONLY: dict[str, tuple[object, ...]] = {
    "tools": (),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
}
"""Fields that only requests with messages support, with the values beside null that have no effect."""

UNSUPPORTED_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "function_call": (),
    "audio": (),
    "annotations": ([],),
    "reasoning_content": (),
}
UNSUPPORTED_ROLES = ("function",)
UNSUPPORTED_PARTS = ("image_url", "input_audio", "file", "refusal")

ALLOWED: Mapping[str, Sequence[str]] = {
    "fenhe.task": TASKS,
    "fenhe.quality": tuple(Quality),
    "fenhe.while_loading": ("wait", "degrade"),
    "fenhe.priority": tuple(Priority),
    "response_format.type": ("text", "json_object", "json_schema"),
    "tool_choice": ("none", "auto", "required"),
    "tool_choice.type": ("function",),
}
"""The choices of fields that have a few, which the decoder does not name."""

MAX_COMPLAINT_CHARS = 600
MAX_NAME_CHARS = 100
"""Of the decoder's message and of a client's field name: both may be as long as the body."""
LEAST_LIKENESS = 0.6
"""How similar a known field must be to be suggested, from 0 to 1."""

_AT_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*)`", re.DOTALL)


def decode_body(body: bytes, decoder: msgspec.json.Decoder[W]) -> W:
    """Raises: BadRequest (no JSON), UnsupportedField, InvalidParameter; each names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        kind: Any = decoder.type  # msgspec 0.23 types it as a TypeForm, earlier versions as a type
        decoded: W = _decode_slowly(body, kind)
        return decoded
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def _decode_slowly(body: bytes, kind: type[W]) -> W:
    try:
        raw = any_decoder.decode(body)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    try:
        return msgspec.convert(_without_empty_fields(raw, kind), kind)
    except msgspec.ValidationError as error:
        raise explain(error, kind) from None


def _without_empty_fields(raw: dict[str, Any], kind: type[RequestBody]) -> dict[str, Any]:
    known = kind.__struct_fields__
    kept = _refuse(raw, known, UNSUPPORTED | CHAT_ONLY, "")
    messages = kept.get("messages")
    if isinstance(messages, list):
        kept["messages"] = [_clean_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return kept


def _clean_message(message: object, where: str) -> object:
    if not isinstance(message, dict):
        return message
    if message.get("role") in UNSUPPORTED_ROLES:
        raise UnsupportedField(
            f"messages of role {message['role']!r} are not supported; send a `tool` message",
            param=f"{where}.role",
        )
    content = message.get("content")
    for i, part in enumerate(content if isinstance(content, list) else ()):
        _refuse_part(part, f"{where}.content[{i}]")
    return _refuse(message, (), UNSUPPORTED_IN_MESSAGE, f"{where}.")


def _refuse_part(part: object, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in UNSUPPORTED_PARTS:
        raise UnsupportedField(
            f"content of type {kind!r} is not supported: this student reads text only", param=f"{where}.type"
        )


def _refuse(
    raw: dict[str, Any], known: tuple[str, ...], refused: Mapping[str, tuple[object, ...]], where: str
) -> dict[str, Any]:
    """Drop fields of `refused` whose value has no effect; refuse the others."""
    kept = {}
    for name, value in raw.items():
        if name in known or name not in refused:
            kept[name] = value
        elif value is not None and not any(_is_same(value, empty) for empty in refused[name]):
            raise UnsupportedField(
                f"`{where}{name}` is not supported by this server; leave it out", param=f"{where}{name}"
            )
    return kept


def _is_same(value: object, empty: object) -> bool:
    return value == empty and isinstance(value, bool) == isinstance(empty, bool)


def explain(error: msgspec.ValidationError, kind: type[RequestBody]) -> ServingError:
    """Turn a typed decoder's complaint into an error that names the field."""
    match = _AT_PATH.match(shorten(str(error), MAX_COMPLAINT_CHARS))
    assert match is not None
    what = match["what"]
    path = (match["path"] or "$").removeprefix("$").removeprefix(".")
    unknown = _UNKNOWN.search(what)
    if unknown is not None:
        name = f"{path}.{unknown['name']}" if path else unknown["name"]
        shown = shorten(name, MAX_NAME_CHARS)
        return UnsupportedField(f"unknown field `{shown}`{_suggestion(unknown['name'], kind)}", param=shown)
    missing = re.search(r"missing required field `(.*)`", what)
    if missing is not None:
        name = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidParameter(f"`{name}` is required", param=name)
    allowed = f", none of {', '.join(ALLOWED[path])}" if path in ALLOWED else ""
    return InvalidParameter(f"`{path or 'body'}`: {what}{allowed}", param=path or None)


def _suggestion(name: str, kind: type[RequestBody]) -> str:
    near = find_near(name, kind.__struct_fields__, LEAST_LIKENESS)
    return "" if near is None else f"; did you mean `{near}`?"
