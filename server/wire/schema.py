"""The wire: every request and response body as a msgspec struct, and one typed decoder per request.

Owns shapes and ranges only. What a value means is decided in `sampling.py`, `chat.py` and `completions.py`.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from router.decision import Priority, Quality
from router.tasks import Task

Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
PositiveProbability = Annotated[float, Meta(gt=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
Positive = Annotated[int, Meta(ge=1)]
TokenId = Annotated[int, Meta(ge=0)]
NumChoices = Annotated[int, Meta(ge=1, le=128)]
TopK = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1)]
StopStrings = Annotated[list[StopString], Meta(max_length=4)]
FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]
Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
JsonSchema = dict[str, Any]


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every request body: a field nobody knows is an error."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every response body."""


class StreamOptions(Wish, frozen=True, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class FenheOptions(Wish, frozen=True, kw_only=True):
    """What fenhe adds to the API: wishes for the router, which win over what it finds by itself.

    `while_loading` says what to do until the path's modules are loaded, `priority` who goes first in a queue. `cache`
    true lets the result cache answer although tokens are drawn at random, false keeps it away.
    """

    task: Task | None = None
    path: Annotated[str, Meta(min_length=1)] | None = None
    quality: Quality | None = None
    while_loading: Literal["wait", "degrade"] | None = None
    priority: Priority | None = None
    cache: bool | None = None


class SamplingWish(Wish, frozen=True, kw_only=True):
    """The fields chat and completions share. `None` means the default everywhere."""

    model: str
    temperature: Temperature | None = None
    top_p: PositiveProbability | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Seed | None = None
    stop: StopString | StopStrings | None = None
    ignore_eos: bool | None = None
    n: NumChoices | None = None
    max_tokens: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    fenhe: FenheOptions | None = None
    user: str | None = None


class TextPart(Wish, frozen=True, kw_only=True):
    text: str
    type: Literal["text"]


class CalledFunction(Wish, frozen=True, kw_only=True):
    """`arguments` is JSON, as text."""

    name: Name
    arguments: str


class EarlierCall(Wish, frozen=True, kw_only=True):
    """A call that the assistant made in an earlier turn."""

    id: Annotated[str, Meta(min_length=1)]
    function: CalledFunction
    type: Literal["function"]


class Message(Wish, frozen=True, kw_only=True):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None


class TextFormat(Wish, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """Free text."""


class JsonObjectFormat(Wish, frozen=True, kw_only=True, tag="json_object", tag_field="type"):
    """Any JSON object."""


class NamedSchema(Wish, frozen=True, kw_only=True):
    """Kept to in any case, whatever `strict` says. `name` and `description` change nothing."""

    name: Name
    schema: JsonSchema | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Wish, frozen=True, kw_only=True, tag="json_schema", tag_field="type"):
    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class FunctionWish(Wish, frozen=True, kw_only=True):
    """A function that may be called. Its parameters' schema is kept to in any case, whatever `strict` says."""

    name: Name
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class ToolWish(Wish, frozen=True, kw_only=True):
    function: FunctionWish
    type: Literal["function"]


class FunctionName(Wish, frozen=True, kw_only=True):
    name: str


class NamedToolWish(Wish, frozen=True, kw_only=True):
    function: FunctionName
    type: Literal["function"]


class ChatRequest(SamplingWish, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolWish], Meta(min_length=1)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolWish | None = None


TokenPrompt = Annotated[list[TokenId], Meta(min_length=1)]


class CompletionRequest(SamplingWish, frozen=True, kw_only=True):
    prompt: (
        str
        | Annotated[
            list[str | TokenId | TokenPrompt],
            Meta(min_length=1, description="strings, one list of token ids, or lists of token ids; never mixed"),
        ]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None


class RouteRequest(Wish, frozen=True, kw_only=True):
    """Either `prompt` or `messages`, as the generating endpoints take them; `fenhe.while_loading` decides nothing."""

    model: str = "auto"
    prompt: str | list[str | TokenId | TokenPrompt] | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    fenhe: FenheOptions | None = None


class StudentRequest(Wish, frozen=True, kw_only=True):
    """A student to add: a folder on the server's disk. `name` is the manifest's when absent."""

    folder: Annotated[str, Meta(min_length=1)]
    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    tasks: list[Task] | None = None


class TokenizeRequest(Wish, frozen=True, kw_only=True):
    """Either `prompt` or `messages`."""

    model: str = "auto"
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Wish, frozen=True, kw_only=True):
    model: str = "auto"
    tokens: list[TokenId]


class TokenizeResponse(Reply, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(Reply, frozen=True, kw_only=True):
    prompt: str


class PromptTokensDetails(Reply, frozen=True, kw_only=True):
    cached_tokens: int


class CompletionTokensDetails(Reply, frozen=True, kw_only=True):
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageReply(Reply, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class ChoiceFenhe(Reply, frozen=True, kw_only=True):
    """The path that really answered: another than asked for only after `while_loading: degrade`."""

    path: str


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
    usage: UsageReply | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class TextLogprobs(Reply, frozen=True, kw_only=True):
    """One entry per token. With `echo` the prompt's come first; the very first has nothing before it and so null."""

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
    usage: UsageReply | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class ErrorDetail(Reply, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply, frozen=True, kw_only=True):
    error: ErrorDetail


chat_decoder = msgspec.json.Decoder(ChatRequest)
completion_decoder = msgspec.json.Decoder(CompletionRequest)
route_decoder = msgspec.json.Decoder(RouteRequest)
student_decoder = msgspec.json.Decoder(StudentRequest)
tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)
any_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
encoder = msgspec.json.Encoder()
