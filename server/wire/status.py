"""Bodies about the server itself: models, routes, probes, students."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from models.student.manifest import HeadKind, Verdict
from router.decision import Reason
from router.tasks import Task
from server.wire.base import FenheOptions, Reply, RequestBody, TemplateVariables, TokenId, TokenPrompt
from server.wire.chat import FunctionTool, Message, ToolChoice


class QualityReply(Reply, frozen=True, kw_only=True):
    """Cross-entropy in nats per token on `text`, measured when the student was built."""

    variant: str
    cross_entropy: float
    text: str
    num_tokens: int


class SamplingReply(Reply, frozen=True, kw_only=True):
    """Null where nothing is recommended: then it is 1, or for `top_k` no limit, for `min_p` 0."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None


class VerdictReply(Reply, frozen=True, kw_only=True):
    """Whether a path with a head is good enough for a task in a language, by each of three rules; docs/routing.md has
    them. Undecided: too little was measured, which counts as failed."""

    task: str
    language: str
    head: HeadKind
    fidelity: Verdict
    field: Verdict
    gate: Verdict


class ModelFenhe(Reply, frozen=True, kw_only=True):
    """What a model id stands for. `share_of_layers` counts exit blocks, so it may pass 1. `width` is how wide its
    modules run, null for the whole width.

    `compute_share`: what an answer token costs with the head that serves, over one on the full path with the exact
    head. `verdicts` are those of the precision that serves; a student that was measured before they existed has none.

    With `is_routed` the router chooses the path, and for `auto` the student too: this is then the deepest path it may
    take, for `auto` the first student's. `recommended_sampling` is used where a request gives no value of its own; null
    where the model recommends nothing, or the server's settings turn that off.
    """

    student: str
    path: str
    is_routed: bool
    modules: list[str]
    width: str | None
    exit: str
    share_of_layers: float
    head: HeadKind
    compute_share: float
    verdicts: list[VerdictReply]
    is_exit_trained: bool
    is_loaded: bool
    num_loaded_stages: int
    num_stages: int
    max_context_tokens: int
    quality: list[QualityReply]
    recommended_sampling: SamplingReply | None


class ModelReply(Reply, frozen=True, kw_only=True):
    id: str
    created: int
    fenhe: ModelFenhe
    owned_by: str = "fenhe"
    object: Literal["model"] = "model"


class ModelList(Reply, frozen=True, kw_only=True):
    data: list[ModelReply]
    object: Literal["list"] = "list"


class TargetReply(Reply, frozen=True, kw_only=True):
    student: str
    path: str
    head: HeadKind


class WordReply(Reply, frozen=True, kw_only=True):
    """A word of the classified text, by its characters. Without it the likeliest task's probability is `pull` lower,
    and the task would be `task`."""

    start: int
    end: int
    pull: float
    task: Task


class RouteReply(Reply, frozen=True, kw_only=True):
    """Where a request would go. `probabilities` and `confidence` are null when nothing was classified.

    `head` is "exact" where the request needs the exact head, otherwise "cheap". `language` is that of the text, null
    where it has none (formulas, names) or does not matter (a named path, quality `full`).
    `skipped` says per student why it was passed over. `num_prompt_tokens` are those of the first prompt; `decision_us`
    is the time of classifying and deciding, without tokenising. `words` is there with `explain`; empty where no single
    word counts: nothing was classified, or the text is long.
    """

    student: str
    path: str
    head: HeadKind
    task: Task
    language: str | None
    confidence: float | None
    reason: Reason
    probabilities: dict[Task, float] | None
    num_prompt_tokens: int
    fallbacks: list[TargetReply]
    skipped: dict[str, str]
    decision_us: float
    words: list[WordReply] | UnsetType = UNSET


class PathProgress(Reply, frozen=True, kw_only=True):
    student: str
    path: str
    is_servable: bool
    is_default: bool
    num_loaded_stages: int
    num_stages: int


class HealthReply(Reply, frozen=True, kw_only=True):
    status: Literal["ok", "unhealthy"]
    error: str | None


StudentStatus = Literal["ready", "loading", "draining", "unhealthy"]


class StudentProgress(Reply, frozen=True, kw_only=True):
    """`loaded_share` is the share of stages that are loaded, of the path that needs most of them."""

    name: str
    status: StudentStatus
    loaded_share: float
    error: str | None


class ProgressReply(Reply, frozen=True, kw_only=True):
    """Ready while any student is. `error` says why no student can answer."""

    status: StudentStatus | Literal["empty"]
    students: list[StudentProgress]
    paths: list[PathProgress]
    error: str | None


class VersionReply(Reply, frozen=True, kw_only=True):
    """All but `version` are of the student of the `model` in the query; without one, of the first student.

    `kv_precision` is what its KV is kept in: `int8`, `fp16` or `fp32`; null where an engine keeps it that is not
    fenhe's own.
    """

    version: str
    student: str | None
    variant: str | None
    kv_precision: str | None
    head: HeadKind | None


class StudentReply(Reply, frozen=True, kw_only=True):
    """A student of the pool, or one that is being added or removed. Empty `tasks`: it takes every task.

    `opening`: its files are being read; `failed`: they could not be, see `error`; `stopping`: it was removed, and what
    it runs may finish within the grace period.
    """

    name: str
    status: StudentStatus | Literal["opening", "failed", "stopping"]
    folder: str
    tasks: list[Task]
    error: str | None = None
    num_running: int = 0
    num_waiting: int = 0
    variant: str | None = None
    head: HeadKind | None = None


class ReloadReply(Reply, frozen=True, kw_only=True):
    """The names of settings that changed, and of those whose new values wait for a restart."""

    changed: list[str]
    needs_restart: list[str]
    num_keys: int


class FlushReply(Reply, frozen=True, kw_only=True):
    """How many cached answers were removed."""

    flushed: int


class StudentList(Reply, frozen=True, kw_only=True):
    students: list[StudentReply]


class RouteRequest(RequestBody, frozen=True, kw_only=True):
    """Either `prompt` or `messages`, as the generating endpoints take them, with those of their fields that change the
    prompt or the path; `fenhe.while_loading` has no effect."""

    model: str = "auto"
    prompt: str | list[str | TokenId | TokenPrompt] | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    reasoning_effort: str | dict[str, Any] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    fenhe: FenheOptions | None = None
    explain: bool | None = None
    """Whether to say which words the verdict hangs on."""


class StudentRequest(RequestBody, frozen=True, kw_only=True):
    """A student to add: a folder on the server's disk, or a GGUF file or Hugging Face folder there to build it from.
    `name` is the manifest's, or the file's, when absent."""

    folder: Annotated[str, Meta(min_length=1)]
    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    tasks: list[Task] | None = None


route_decoder = msgspec.json.Decoder(RouteRequest)


student_decoder = msgspec.json.Decoder(StudentRequest)
