"""Bodies of chat completions: messages, tools, formats, choices and chunks."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from server.wire.base import (
    AnswerTokens,
    ChoiceFenhe,
    LooseBody,
    Reply,
    RequestBody,
    SamplingBody,
    TemplateVariables,
    UsageReply,
    UsageSoFar,
)

ChatFinishReason = Literal["stop", "length", "tool_calls"]


Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
TOOL_NAME = "[a-zA-Z0-9_.:/-]{1,128}"
"""Source: OpenAI's names have 64 letters, digits, `_` and `-`, Anthropic's 128; the Model Context Protocol's have dots,
and clients join them with the server's name."""
ToolName = Annotated[str, Meta(pattern=f"^{TOOL_NAME}$")]

JsonSchema = dict[str, Any]


class TextPart(LooseBody, frozen=True, kw_only=True):
    text: str
    type: Literal["text"]


class CalledFunction(LooseBody, frozen=True, kw_only=True):
    """`arguments` is JSON as text, or any other text: a call may have been cut off."""

    name: str
    arguments: str


class EarlierCall(LooseBody, frozen=True, kw_only=True):
    """A call that the assistant made in an earlier turn."""

    id: str
    function: CalledFunction
    type: Literal["function"]


class Message(LooseBody, frozen=True, kw_only=True):
    """`reasoning_content` is seen by chat templates that show earlier thoughts, and has no effect with others."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None


class TextFormat(RequestBody, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """Free text."""


class JsonObjectFormat(RequestBody, frozen=True, kw_only=True, tag="json_object", tag_field="type"):
    """Any JSON object, or one of a schema, as llama.cpp and others have it."""

    schema: JsonSchema | None = None


class NamedSchema(LooseBody, frozen=True, kw_only=True):
    """With `strict` what cannot be enforced is refused, otherwise it is left out. The other fields have no effect."""

    name: Name | None = None
    schema: JsonSchema | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(RequestBody, frozen=True, kw_only=True, tag="json_schema", tag_field="type"):
    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class FunctionDefinition(LooseBody, frozen=True, kw_only=True):
    """A function that may be called. What cannot be enforced of `parameters` is left out, with `strict` refused."""

    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class FunctionTool(LooseBody, frozen=True, kw_only=True):
    function: FunctionDefinition
    type: Literal["function"]


class FunctionName(RequestBody, frozen=True, kw_only=True):
    name: str


class NamedToolChoice(RequestBody, frozen=True, kw_only=True):
    function: FunctionName
    type: Literal["function"]


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class ChatRequest(SamplingBody, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: AnswerTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | dict[str, Any] | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None


class TopLogprob(Reply, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(Reply, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply, frozen=True, kw_only=True):
    content: list[ContentLogprob]
    refusal: None = None


class FunctionCall(Reply, frozen=True, kw_only=True):
    """`arguments` is JSON, as text; incomplete only where the answer was cut off."""

    name: str
    arguments: str


class ToolCall(Reply, frozen=True, kw_only=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class AssistantMessage(Reply, frozen=True, kw_only=True):
    """`content` is null where the answer is tool calls alone."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Reply, frozen=True, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    fenhe: ChoiceFenhe


class ChatCompletion(Reply, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageReply
    object: Literal["chat.completion"] = "chat.completion"


class FunctionDelta(Reply, frozen=True, kw_only=True):
    arguments: str
    name: str | UnsetType = UNSET


class CallDelta(Reply, frozen=True, kw_only=True):
    """A piece of the tool call `index`. The first one has id, type and name; the arguments come after it."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Reply, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChunkChoice(Reply, frozen=True, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    fenhe: ChoiceFenhe | UnsetType = UNSET


class ChatChunk(Reply, frozen=True, kw_only=True):
    """One `data:` line of a stream. `usage` is absent unless `stream_options.include_usage` was asked for."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: UsageSoFar | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


chat_decoder = msgspec.json.Decoder(ChatRequest)
