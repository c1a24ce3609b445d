"""Bodies of `/v1/messages` and `/v1/messages/count_tokens`: the request, the message, and the events of a stream.

Source: Anthropic API reference, messages, their streaming events and errors.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from models.errors import UnsupportedField
from models.sampling import PositiveProbability, Temperature
from server.wire.base import (
    ChoiceFenhe,
    FenheOptions,
    LooseBody,
    Reply,
    RequestBody,
    StopString,
    UsageFenhe,
    recommended_else,
)
from server.wire.chat import JsonSchema
from server.wire.ignored import Ignored
from server.wire.raw_body import Raw

StopSequences = Annotated[list[StopString], Meta(max_length=32)]


class TextBlock(LooseBody, frozen=True, kw_only=True, tag="text", tag_field="type"):
    text: str


class PlainText(LooseBody, frozen=True, kw_only=True):
    """A text block where there is no other kind."""

    type: Literal["text"]
    text: str


class ToolUseBlock(LooseBody, frozen=True, kw_only=True, tag="tool_use", tag_field="type"):
    """A call that the assistant made in an earlier turn."""

    id: Annotated[str, Meta(min_length=1)]
    name: str
    input: Any = None


class ToolResultBlock(LooseBody, frozen=True, kw_only=True, tag="tool_result", tag_field="type"):
    tool_use_id: Annotated[str, Meta(min_length=1)]
    content: str | list[PlainText] | None = None
    is_error: bool | None = None


class ThinkingBlock(LooseBody, frozen=True, kw_only=True, tag="thinking", tag_field="type"):
    """Of an earlier answer; left out of the prompt."""


class RedactedThinkingBlock(LooseBody, frozen=True, kw_only=True, tag="redacted_thinking", tag_field="type"):
    """Of an earlier answer; left out of the prompt."""


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock


class Turn(LooseBody, frozen=True, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


READ = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking")
"""Types of blocks that may be sent."""


def adapt_turn(raw: Raw, place: str, ignored: Ignored) -> Raw:
    """What an assistant said and nobody here can read, such as the search of a provider, is left out.

    Raises: UnsupportedField for such a block of a user (an image, a document).
    """
    content, is_answer = raw.get("content"), raw.get("role") == "assistant"
    if not isinstance(content, list):
        return {**raw, "content": ""} if content is None and is_answer else raw
    kept = []
    for index, block in enumerate(content):
        kind, where = block.get("type") if isinstance(block, dict) else None, f"{place}.content[{index}]"
        if kind in READ or not isinstance(kind, str):
            kept.append(block)
        elif is_answer:
            ignored.add(kind, where)
        else:
            raise _not_text(kind, where)
    return {**raw, "content": kept}


def adapt_plain_text(raw: Raw, place: str, ignored: Ignored) -> Raw:
    """Raises: UnsupportedField for a block that is no text, such as an image in the result of a tool."""
    kind = raw.get("type")
    if isinstance(kind, str) and kind != "text":
        raise _not_text(kind, place)
    return raw


def _not_text(kind: str, where: str) -> UnsupportedField:
    return UnsupportedField(
        f"`{where}.type`: content of type {kind[:100]!r} is not supported: this student reads text only",
        param=f"{where}.type",
    )


class ToolDefinition(LooseBody, frozen=True, kw_only=True):
    """With another `type` than `custom` it is a tool of the provider: left out, and the answer says so."""

    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: JsonSchema | None = None
    strict: bool | None = None


class AutoChoice(LooseBody, frozen=True, kw_only=True, tag="auto", tag_field="type"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(LooseBody, frozen=True, kw_only=True, tag="any", tag_field="type"):
    disable_parallel_tool_use: bool | None = None


class NamedChoice(LooseBody, frozen=True, kw_only=True, tag="tool", tag_field="type"):
    name: str
    disable_parallel_tool_use: bool | None = None


class NoneChoice(LooseBody, frozen=True, kw_only=True, tag="none", tag_field="type"):
    """No tool, and none in the prompt."""


ToolChoice = AutoChoice | AnyChoice | NamedChoice | NoneChoice


class OutputFormat(LooseBody, frozen=True, kw_only=True):
    type: Literal["json_schema"]
    schema: JsonSchema


class OutputConfig(LooseBody, frozen=True, kw_only=True):
    format: OutputFormat | None = None


class ThreadCreate(LooseBody, frozen=True, kw_only=True, tag="create", tag_field="type"):
    """Asks to keep the conversation, which has no effect: nothing is stored."""


class ThreadContinue(LooseBody, frozen=True, kw_only=True, tag="continue", tag_field="type"):
    """Sends what is new in a conversation that was to be kept: refused as not found, then clients send all of it."""

    previous_message_id: str


class MessageFields(RequestBody, frozen=True, kw_only=True):
    """Those of any type have no effect here."""

    model: str
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[PlainText] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    thread: ThreadCreate | ThreadContinue | None = None
    temperature: Annotated[Temperature | None, recommended_else("1")] = None
    top_p: Annotated[PositiveProbability | None, recommended_else("1")] = None
    top_k: Annotated[Annotated[int, Meta(ge=0)] | None, recommended_else("no limit")] = None
    stop_sequences: StopSequences | None = None
    stream: bool | None = None
    fenhe: FenheOptions | None = None
    thinking: Any = None
    cache_control: Any = None
    context_management: Any = None
    metadata: Any = None
    service_tier: Any = None
    speed: Any = None
    container: Any = None
    inference_geo: Any = None
    diagnostics: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
    anthropic_version: Any = None
    anthropic_beta: Any = None
    betas: Any = None


class MessageRequest(MessageFields, frozen=True, kw_only=True):
    """With `max_tokens` 0 the prompt is computed and nothing else."""

    max_tokens: Annotated[int, Meta(ge=0)]


class CountRequest(MessageFields, frozen=True, kw_only=True):
    """What is counted: `messages`, `system`, `tools` and `tool_choice`; the others have no effect."""

    max_tokens: Annotated[int, Meta(ge=0)] | None = None


class TextReply(Reply, frozen=True, kw_only=True, tag="text", tag_field="type"):
    text: str
    citations: None = None


class ToolUseReply(Reply, frozen=True, kw_only=True, tag="tool_use", tag_field="type"):
    """`input` is empty where a stream begins, and where a call was cut off."""

    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(Reply, frozen=True, kw_only=True):
    """The prompt's tokens are `input_tokens` and `cache_read_input_tokens` together."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0
    service_tier: Literal["standard"] = "standard"
    fenhe: UsageFenhe | UnsetType = UNSET


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageFenhe(ChoiceFenhe, frozen=True, kw_only=True):
    """`left_out` are tools of the request that this server does not have."""

    left_out: list[str] | UnsetType = UNSET


class MessageReply(Reply, frozen=True, kw_only=True, tag="message", tag_field="type"):
    id: str
    model: str
    content: list[TextReply | ToolUseReply]
    usage: MessageUsage
    role: Literal["assistant"] = "assistant"
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    fenhe: MessageFenhe


class CountReply(Reply, frozen=True, kw_only=True):
    input_tokens: int


class TextDelta(Reply, frozen=True, kw_only=True, tag="text_delta", tag_field="type"):
    text: str


class InputDelta(Reply, frozen=True, kw_only=True, tag="input_json_delta", tag_field="type"):
    partial_json: str


class EndDelta(Reply, frozen=True, kw_only=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageStart(Reply, frozen=True, kw_only=True, tag="message_start", tag_field="type"):
    message: MessageReply


class Ping(Reply, frozen=True, kw_only=True, tag="ping", tag_field="type"):
    """Keeps a connection busy."""


class BlockStart(Reply, frozen=True, kw_only=True, tag="content_block_start", tag_field="type"):
    index: int
    content_block: TextReply | ToolUseReply


class BlockDelta(Reply, frozen=True, kw_only=True, tag="content_block_delta", tag_field="type"):
    index: int
    delta: TextDelta | InputDelta


class BlockStop(Reply, frozen=True, kw_only=True, tag="content_block_stop", tag_field="type"):
    index: int


class MessageDelta(Reply, frozen=True, kw_only=True, tag="message_delta", tag_field="type"):
    delta: EndDelta
    usage: MessageUsage


class MessageStop(Reply, frozen=True, kw_only=True, tag="message_stop", tag_field="type"):
    """The end."""


MessageEvent = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


message_decoder = msgspec.json.Decoder(MessageRequest)


count_decoder = msgspec.json.Decoder(CountRequest)
