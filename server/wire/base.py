"""What the bodies of several endpoints have in common: bases, ranges of numbers, usage, errors.

Bodies are msgspec structs with one typed decoder per request. They own shapes and ranges only; what a value means is
decided in `server/generation` and `server/api`.
"""

from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

from models.sampling import PositiveProbability, Probability, RepetitionPenalty, Temperature, TopK
from router.decision import Priority, Quality
from router.tasks import Task

T = TypeVar("T")

Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]


Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]


Positive = Annotated[int, Meta(ge=1)]


NO_BOUND = -1
"""`max_tokens` of clients that want as many as there is room for, as LM Studio's and llama.cpp's do."""

AnswerTokens = Annotated[int, Meta(ge=-1, description="-1: as many as there is room for; more than that is clamped")]


TokenId = Annotated[int, Meta(ge=0)]


NumChoices = Annotated[int, Meta(ge=1, le=128)]


Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


StopString = Annotated[str, Meta(min_length=1, max_length=1024)]


StopStrings = Annotated[list[StopString], Meta(max_length=32)]


StopTokens = Annotated[list[TokenId], Meta(max_length=128)]


FinishReason = Literal["stop", "length"]


class RequestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every request body: an unknown field that is not null is an error."""


class LooseBody(RequestBody, frozen=True, kw_only=True):
    """Base of what clients send back or label as they like (messages, parts, tools): unknown fields are ignored."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every response body."""


class StreamOptions(RequestBody, frozen=True, kw_only=True):
    """`continuous_usage_stats` puts the usage so far on every chunk, where `include_usage` is true."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class FenheOptions(RequestBody, frozen=True, kw_only=True):
    """What fenhe adds to the API: preferences of the request, which win over the router's own choice.

    `while_loading` says what to do until the path's modules are loaded, `priority` orders the queue. `cache` true
    allows a cached answer although sampling is random, false forbids it. `online_quality` false: the answer is not
    scored afterwards.
    """

    task: Task | None = None
    path: Annotated[str, Meta(min_length=1)] | None = None
    quality: Quality | None = None
    while_loading: Literal["wait", "degrade"] | None = None
    priority: Priority | None = None
    cache: bool | None = None
    online_quality: bool | None = None


Choices = Annotated[list[str], Meta(min_length=1, max_length=512)]


class StructuredOutputs(RequestBody, frozen=True, kw_only=True):
    """One of these is the form of the answer: a JSON schema or the text of one, a regular expression, one of some
    texts, a grammar (Lark or GBNF), or any JSON object."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


def recommended_else(value: str) -> Meta:
    """The description of a field whose default is the model's own."""
    return Meta(
        description=f"Null or absent: what the model recommends (`recommended_sampling` in /v1/models), else {value}."
    )


class SamplingBody(RequestBody, frozen=True, kw_only=True):
    """The fields chat and completions share. A null is the same as leaving the field out."""

    model: str
    temperature: Annotated[Temperature | None, recommended_else("1")] = None
    top_p: Annotated[PositiveProbability | None, recommended_else("1")] = None
    top_k: Annotated[TopK | None, recommended_else("no limit")] = None
    min_p: Annotated[Probability | None, recommended_else("0")] = None
    repetition_penalty: Annotated[RepetitionPenalty | None, recommended_else("1")] = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Seed | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: StopTokens | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    n: NumChoices | None = None
    max_tokens: AnswerTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    fenhe: FenheOptions | None = None
    user: str | None = None


TemplateVariables = dict[str, Any]
"""What a chat template is told, as far as it reads it; the rest has no effect."""


TokenPrompt = Annotated[list[TokenId], Meta(min_length=1)]


class PromptTokensDetails(Reply, frozen=True, kw_only=True):
    cached_tokens: int


class CompletionTokensDetails(Reply, frozen=True, kw_only=True):
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageFenhe(Reply, frozen=True, kw_only=True):
    """What the answer's generation took, prompt and all choices, in multiply-adds; `full_multiply_adds` is what the
    full path with the exact head would have taken for the same tokens. Prompt tokens from the prefix cache cost
    nothing, on either side.
    """

    compute_share: float
    multiply_adds: int
    full_multiply_adds: int


class UsageSoFar(Reply, frozen=True, kw_only=True):
    """Of a chunk, its choice alone. The last chunk of a stream has the whole usage, as a JSON body has it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class UsageReply(UsageSoFar, frozen=True, kw_only=True):
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()
    fenhe: UsageFenhe


class ChoiceFenhe(Reply, frozen=True, kw_only=True):
    """The path that really answered: another than asked for only after `while_loading: degrade`."""

    path: str


class ErrorDetail(Reply, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply, frozen=True, kw_only=True):
    error: ErrorDetail


any_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


encoder = msgspec.json.Encoder()


def encoded(value: T) -> T:
    """The JSON of a value, which takes its place inside a larger one: a long list is then written piece by piece, and
    others may run between two pieces."""
    return cast(T, msgspec.Raw(encoder.encode(value)))
