"""Bodies of `/v1/responses`: the request, the response, and the typed events of a stream.

Source: OpenAI API reference, responses and their streaming events; the stateless part of it.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from models.sampling import PositiveProbability, Temperature
from server.wire.base import (
    ChoiceFenhe,
    FenheOptions,
    LooseBody,
    Positive,
    Reply,
    RequestBody,
    UsageFenhe,
    recommended_else,
)
from server.wire.chat import ContentLogprob, JsonSchema, Name
from server.wire.response_input import InputItem

LOGPROBS = "message.output_text.logprobs"
"""The value of `include` that asks for log-probabilities."""


class ResponseStreamOptions(RequestBody, frozen=True, kw_only=True):
    include_obfuscation: bool | None = None


class TextFormatFields(RequestBody, frozen=True, kw_only=True):
    """With `json_schema`, and with it alone, come `name` and `schema`, perhaps `strict` and `description`."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema: JsonSchema | None = None
    strict: bool | None = None
    description: str | None = None


class TextFields(RequestBody, frozen=True, kw_only=True):
    format: TextFormatFields | None = None
    verbosity: str | None = None


class ResponseTool(LooseBody, frozen=True, kw_only=True):
    """A function. With another `type` it is a tool that this server does not have: it is left out, and named in the
    response."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class FunctionChoice(LooseBody, frozen=True, kw_only=True, tag="function", tag_field="type"):
    name: str


class AllowedTool(LooseBody, frozen=True, kw_only=True, omit_defaults=True):
    type: str
    name: str | None = None


class AllowedTools(LooseBody, frozen=True, kw_only=True, tag="allowed_tools", tag_field="type"):
    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


ResponseToolChoice = Literal["none", "auto", "required"] | FunctionChoice | AllowedTools


class ResponseReasoning(LooseBody, frozen=True, kw_only=True):
    effort: str | None = None


Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""Beside log-probabilities, what no response here has: of thoughts, images and a provider's own tools."""


class ResponseRequest(RequestBody, frozen=True, kw_only=True):
    """Nothing is stored, whatever `store` says, and the response says so."""

    model: str
    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Annotated[Temperature | None, recommended_else("1")] = None
    top_p: Annotated[PositiveProbability | None, recommended_else("1")] = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextFields | None = None
    include: list[Included] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    reasoning: ResponseReasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    client_metadata: Any = None
    user: str | None = None
    fenhe: FenheOptions | None = None


class OutputText(Reply, frozen=True, kw_only=True, tag="output_text", tag_field="type"):
    text: str
    annotations: list[Any] = msgspec.field(default_factory=list)
    logprobs: list[ContentLogprob] = msgspec.field(default_factory=list)


class OutputMessage(Reply, frozen=True, kw_only=True, tag="message", tag_field="type"):
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputCall(Reply, frozen=True, kw_only=True, tag="function_call", tag_field="type"):
    """`arguments` is JSON, as text; incomplete only where the answer was cut off."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"]


OutputItem = OutputMessage | OutputCall


class ToolReply(Reply, frozen=True, kw_only=True, tag="function", tag_field="type"):
    name: str
    description: str | None
    parameters: JsonSchema | None
    strict: bool | None


class ResponseFenhe(ChoiceFenhe, frozen=True, kw_only=True):
    """`left_out` are tools of the request that this server does not have."""

    left_out: list[str] | UnsetType = UNSET


class IncompleteDetails(Reply, frozen=True, kw_only=True):
    reason: Literal["max_output_tokens"]


class ResponseFault(Reply, frozen=True, kw_only=True):
    """Why a stream failed after its start. `code` is one of the few that the specification has."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class InputTokensDetails(Reply, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Reply, frozen=True, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(Reply, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    fenhe: UsageFenhe


class TextReply(Reply, frozen=True, kw_only=True):
    format: dict[str, Any]


class ResponseReply(Reply, frozen=True, kw_only=True):
    """A response, finished or still in progress. `usage` is null until its end."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[OutputItem]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    temperature: float
    top_p: float
    text: TextReply
    parallel_tool_calls: bool
    user: str | None = None
    completed_at: int | None = None
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | None = None
    tools: list[ToolReply] = msgspec.field(default_factory=list)
    tool_choice: ResponseToolChoice = "auto"
    background: Literal[False] = False
    store: Literal[False] = False
    previous_response_id: None = None
    reasoning: None = None
    service_tier: Literal["default"] = "default"
    truncation: Literal["disabled"] = "disabled"
    object: Literal["response"] = "response"
    fenhe: ResponseFenhe | UnsetType = UNSET


EventType = Literal[
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
]


class ResponseEvent(Reply, frozen=True, kw_only=True):
    """One event of a stream. `type` says which of the other fields it has; they are absent otherwise."""

    type: EventType
    sequence_number: int
    response: ResponseReply | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    part: OutputText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[ContentLogprob] | UnsetType = UNSET


response_decoder = msgspec.json.Decoder(ResponseRequest)
