"""Bodies of text completions."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from server.wire.base import ChoiceFenhe, FinishReason, Reply, SamplingBody, TokenId, TokenPrompt, UsageSoFar
from server.wire.chat import ResponseFormat


class CompletionRequest(SamplingBody, frozen=True, kw_only=True):
    prompt: (
        str
        | Annotated[
            list[str | TokenId | TokenPrompt],
            Meta(min_length=1, description="strings, one list of token ids, or lists of token ids; never mixed"),
        ]
    )
    response_format: ResponseFormat | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


class TextLogprobs(Reply, frozen=True, kw_only=True):
    """One entry per token. With `echo` the prompt's tokens come first; the very first is null: nothing precedes it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Reply, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None
    fenhe: ChoiceFenhe | UnsetType = UNSET


class TextCompletion(Reply, frozen=True, kw_only=True):
    """A completion, whole or one `data:` line of a stream: the API uses one shape for both."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageSoFar | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


completion_decoder = msgspec.json.Decoder(CompletionRequest)
