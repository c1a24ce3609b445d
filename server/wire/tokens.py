"""Bodies of /tokenize and /detokenize."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from server.wire.base import Reply, RequestBody, TemplateVariables, TokenId
from server.wire.chat import FunctionTool, Message, ToolChoice


class TokenizeRequest(RequestBody, frozen=True, kw_only=True):
    """Either `prompt` or `messages`."""

    model: str = "auto"
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    reasoning_effort: str | dict[str, Any] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestBody, frozen=True, kw_only=True):
    model: str = "auto"
    tokens: list[TokenId]


class TokenizeResponse(Reply, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(Reply, frozen=True, kw_only=True):
    prompt: str


tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)


detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)
