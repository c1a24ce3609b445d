"""Bodies of requests to remote students, and of their answers: passed on as they are but for names.

A request's `model` becomes the upstream's, `fenhe` is left out; an answer's `id` and `model` become ours. All other
values keep their bytes.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from engines.remote_call import RemoteCall, affinity_of
from models.errors import BadRequest, InvalidParameter
from router.conversation import Conversation, conversation_of
from server.wire.base import encoder

Fields = dict[str, msgspec.Raw]

BYTES_PER_TOKEN = 4
"""About what a token has of a JSON body, English or Chinese; only the upstream can count."""
USUAL_ANSWER_TOKENS = 512
"""What a request counts for that does not bound its answer."""
BEGINNING_BYTES = 4096

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "chat/completions", "completions", "responses", "messages"
ID_PREFIX = {CHAT: "chatcmpl-", COMPLETIONS: "cmpl-", RESPONSES: "resp_", MESSAGES: "msg_"}
BOUNDS = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    COMPLETIONS: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
}
"""The fields that bound an answer, by endpoint; where none is given the first one is added."""
HAVE_STREAM_OPTIONS = (CHAT, COMPLETIONS)

_decoder = msgspec.json.Decoder(Fields)


def fields_of(raw: bytes) -> Fields:
    """The fields of a body, undecoded. Raises: BadRequest for what is no JSON object."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body must be a JSON object: {error}") from None


def value_of(fields: Mapping[str, msgspec.Raw], name: str, default: Any = None) -> Any:
    """The value of a field; `default` where it is absent or null. Raises: InvalidParameter."""
    if name not in fields:
        return default
    try:
        value = msgspec.json.decode(fields[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"`{name}` cannot be read: {error}", param=name) from None
    return default if value is None else value


def number_in(fields: Mapping[str, msgspec.Raw], names: tuple[str, ...]) -> int | None:
    """The first of these fields that is a whole number."""
    found = (value_of(fields, name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)


def model_in(fields: Mapping[str, msgspec.Raw]) -> str:
    """Raises: InvalidParameter."""
    model = value_of(fields, "model")
    if not isinstance(model, str):
        raise InvalidParameter("`model` is required: the id of a model, or `auto`", param="model")
    return model


def is_stream(fields: Mapping[str, msgspec.Raw]) -> bool:
    """Raises: InvalidParameter for what is neither true nor false."""
    wanted = value_of(fields, "stream", False)
    if not isinstance(wanted, bool):
        raise InvalidParameter("`stream` must be true or false", param="stream")
    return wanted


def wants_usage(fields: Mapping[str, msgspec.Raw]) -> bool:
    options = value_of(fields, "stream_options", {})
    return isinstance(options, dict) and bool(options.get("include_usage"))


def call_of(
    endpoint: str, fields: Fields, model: str, *, num_bytes: int, max_answer_tokens: int | None, asks_usage: bool
) -> RemoteCall:
    """What the upstream is asked. `max_answer_tokens` is this server's own bound; with `asks_usage` a stream tells its
    usage, whether or not the client wants to know."""
    sent = {name: value for name, value in fields.items() if name != "fenhe"}
    sent["model"] = _raw(model)
    streams = is_stream(fields)
    if streams and asks_usage and endpoint in HAVE_STREAM_OPTIONS:
        options = value_of(fields, "stream_options", {})
        if isinstance(options, dict):
            sent["stream_options"] = _raw(options | {"include_usage": True})
    if max_answer_tokens is not None:
        _bound(sent, BOUNDS[endpoint], max_answer_tokens)
    return RemoteCall(
        endpoint=endpoint,
        model=model,
        body=encoder.encode(sent),
        is_stream=streams,
        num_prompt_tokens=estimated_tokens(num_bytes),
        affinity=affinity_of(_beginning(fields)),
    )


def _bound(sent: Fields, names: tuple[str, ...], most: int) -> None:
    given = [name for name in names if number_in(sent, (name,)) is not None]
    for name in given or names[:1]:
        wanted = number_in(sent, (name,))
        if wanted is None or wanted < 0 or wanted > most:
            sent[name] = _raw(most)


def estimated_tokens(num_bytes: int) -> int:
    return max(1, num_bytes // BYTES_PER_TOKEN)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(encoder.encode(value))


def _beginning(fields: Mapping[str, msgspec.Raw]) -> bytes:
    """What all turns of a conversation begin with: instructions, and the turns up to the user's first one."""
    parts = [bytes(fields[name]) for name in ("system", "instructions", "prompt") if name in fields]
    turns = fields.get("messages") or fields.get("input")
    parts += [] if turns is None else _first_turns(turns)
    return b"\0".join(part[:BEGINNING_BYTES] for part in parts)


def _first_turns(turns: msgspec.Raw) -> list[bytes]:
    try:
        several = msgspec.json.decode(turns, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [bytes(turns)]  # a plain text
    first: list[bytes] = []
    for turn in several:
        first.append(bytes(turn))
        if b'"user"' in first[-1][:BEGINNING_BYTES]:
            break
    return first


def conversation_in(fields: Mapping[str, msgspec.Raw]) -> Conversation:
    """What is classified; whatever is no text is passed over."""
    prompt = value_of(fields, "prompt")
    if prompt is not None:
        return Conversation(last=_text(prompt))
    turns = value_of(fields, "messages", value_of(fields, "input", []))
    instructions = [("system", _text(value_of(fields, name))) for name in ("system", "instructions")]
    if isinstance(turns, str):
        return conversation_of([*instructions, ("user", turns)])
    found = [(str(turn.get("role")), _text(turn.get("content"))) for turn in turns if isinstance(turn, dict)]
    return conversation_of([*instructions, *found])


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def relabelled(data: bytes, id: str, model: str) -> Fields:
    """The fields of an answer, or of an event, under our id and model; also of the response or message in it."""
    fields = _decoder.decode(data)
    for name in ("response", "message"):
        inner = fields.get(name)
        if inner is not None and bytes(inner)[:1] == b"{":
            fields[name] = msgspec.Raw(encoder.encode(_relabel(_decoder.decode(inner), id, model)))
    return _relabel(fields, id, model)


def _relabel(fields: Fields, id: str, model: str) -> Fields:
    if "model" in fields:
        fields["model"] = _raw(model)
        if "id" in fields:
            fields["id"] = _raw(id)
    return fields
