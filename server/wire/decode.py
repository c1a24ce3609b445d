"""From the bytes of a body to a request struct: what would change the answer and is not supported is refused by name,
what cannot change it is ignored.

Most bodies pass the typed decoder at once. One that it refuses is read a second time, to leave out what has no effect,
or to say what is wrong.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from models.errors import BadRequest, InvalidParameter, ServingError, UnsupportedField
from router.decision import Priority, Quality
from router.tasks import TASKS
from server.settings.suggestions import find_near
from server.wire.base import RequestBody, StructuredOutputs, any_decoder
from server.wire.chat import CalledFunction, ChatRequest, EarlierCall, Message
from server.wire.completions import CompletionRequest
from server.wire.errors import shorten
from server.wire.history import adapt_call, adapt_called_function, adapt_message
from server.wire.ignored import HARMLESS, Ignored
from server.wire.long_biases import decode_in_pieces
from server.wire.messages import PlainText, Turn, adapt_plain_text, adapt_turn
from server.wire.not_json import not_json
from server.wire.raw_body import Adapter, Raw, prepared
from server.wire.refused import ELSEWHERE, UNSUPPORTED
from server.wire.response_input import InputItem, adapt_item
from server.wire.status import RouteRequest
from server.wire.tokens import TokenizeRequest

W = TypeVar("W", bound=RequestBody)

SAMPLING_FIELDS = frozenset(ChatRequest.__struct_fields__ + CompletionRequest.__struct_fields__)
NOTHING_IS_GENERATED = (TokenizeRequest, RouteRequest)
"""Bodies for which fields that say how to generate have no effect: clients send there what they send elsewhere."""

NEUTRAL_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
    "disable_fallback": (False, True),
}
"""Options of `structured_outputs` and the values that have no effect."""


def without_neutral_options(raw: Raw, place: str, ignored: Ignored) -> Raw:
    """vLLM's own options beside the form, where they have no effect."""
    kept = {}
    for name, value in raw.items():
        if name in NEUTRAL_OPTIONS and value in NEUTRAL_OPTIONS[name]:
            ignored.add(name, place)
        else:
            kept[name] = value
    return kept


ADAPTERS: Mapping[type[RequestBody], Adapter] = {
    Message: adapt_message,
    EarlierCall: adapt_call,
    CalledFunction: adapt_called_function,
    InputItem: adapt_item,
    StructuredOutputs: without_neutral_options,
    Turn: adapt_turn,
    PlainText: adapt_plain_text,
}
"""Structs that clients also send in other shapes."""

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


def decode_body(body: bytes, decoder: msgspec.json.Decoder[W], ignored: Ignored | None = None) -> W:
    """`ignored` gets what was ignored of the body.

    Raises: BadRequest (no JSON), UnsupportedField, InvalidParameter; each names the field.
    """
    ignored = Ignored() if ignored is None else ignored
    try:
        decoded = decode_in_pieces(body, decoder)
    except msgspec.ValidationError:
        kind: Any = decoder.type  # msgspec 0.23 types it as a TypeForm, earlier versions as a type
        decoded = _decode_slowly(body, kind, ignored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(body, error) from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    _add_harmless(decoded, ignored)
    return decoded


def _add_harmless(decoded: RequestBody, ignored: Ignored) -> None:
    """Record fields that a struct has and nothing reads."""
    for name in _harmless_fields(type(decoded)):
        if getattr(decoded, name) is not None:
            ignored.add(name)
    options = getattr(decoded, "stream_options", None)
    if options is not None and options.include_obfuscation:
        ignored.add("include_obfuscation", "stream_options")


@functools.cache
def _harmless_fields(kind: type[RequestBody]) -> tuple[str, ...]:
    return tuple(name for name in kind.__struct_fields__ if name in HARMLESS)


def _decode_slowly(body: bytes, kind: type[W], ignored: Ignored) -> W:
    try:
        raw = any_decoder.decode(body)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(body, error) from None
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    try:
        return msgspec.convert(prepared(_at_top(raw, kind, ignored), kind, ignored, ADAPTERS), kind)
    except msgspec.ValidationError as error:
        raise explain(error, kind) from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def _at_top(raw: dict[str, Any], kind: type[RequestBody], ignored: Ignored) -> dict[str, Any]:
    """The body without fields that have no effect, or none with their value. Raises: UnsupportedField."""
    known, refused = kind.__struct_fields__, UNSUPPORTED | ELSEWHERE
    kept = {}
    for name, value in raw.items():
        if name in known:
            kept[name] = value
        elif name in HARMLESS or (name in SAMPLING_FIELDS and issubclass(kind, NOTHING_IS_GENERATED)):
            ignored.add(name)
        elif name not in refused:
            kept[name] = value
        elif value is not None and not any(_is_same(value, empty) for empty in refused[name]):
            raise UnsupportedField(f"`{name}` is not supported by this server; leave it out", param=name)
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
