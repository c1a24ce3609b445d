"""The bodies that the console reads: numbers and names, nothing of any request's text, and no request's id."""

from typing import Literal

import msgspec

from models.student.manifest import HeadKind, Verdict
from router.tasks import Task
from server.wire.base import Reply, RequestBody
from server.wire.debug import CacheState, DoorState, EngineState
from server.wire.online_quality import OnlineQualityState
from server.wire.status import PathProgress, StudentStatus


class RowReply(Reply, frozen=True, kw_only=True):
    """A sequence in an engine: its path, and how far it is. Computed tokens are those whose KV is written."""

    path: str
    head: HeadKind
    status: str
    num_prompt_tokens: int
    num_computed_tokens: int
    num_completion_tokens: int
    max_completion_tokens: int


class RoutedReply(Reply, frozen=True, kw_only=True):
    """Requests since the start that were routed to a path with a head for a task."""

    task: Task
    path: str
    head: HeadKind
    num_requests: int


class LiveStudent(Reply, frozen=True, kw_only=True):
    """`rows` are the sequences that run, in slot order; null where the engine did not answer in time."""

    name: str
    status: StudentStatus
    variant: str
    head: HeadKind
    error: str | None
    paths: list[PathProgress]
    engine: EngineState
    rows: list[RowReply] | None
    num_rows: int
    num_waiting: int
    door: DoorState
    routed: list[RoutedReply]


class LiveReply(Reply, frozen=True, kw_only=True):
    """What the server does now. `at_s` is the server's own clock, for rates between two replies.

    `online_quality` is what `/debug/state` has under that name.
    """

    version: str
    at_s: float
    is_draining: bool
    num_open_requests: int
    students: list[LiveStudent]
    cache: CacheState
    online_quality: OnlineQualityState


class ModuleReply(Reply, frozen=True, kw_only=True):
    name: str
    first_layer: int
    num_layers: int


class FigureReply(Reply, frozen=True, kw_only=True):
    """What a path keeps on a task, with its 95 % interval where one was measured; null where nothing was."""

    kept: float | None
    low: float | None
    high: float | None


class TaskFigures(Reply, frozen=True, kw_only=True):
    """A path with a head on a task in a language, at the precision that serves; docs/evaluation.md has the figures."""

    task: str
    language: str
    head: HeadKind
    gate: Verdict
    fidelity: Verdict
    field: Verdict
    accuracy: FigureReply
    information: FigureReply
    agreement: FigureReply
    perplexity_ratio_own: float | None
    perplexity_ratio_human: float | None


class PathReply(Reply, frozen=True, kw_only=True):
    """`lit` is the share of its neurons that each layer of the student runs on the path, 0 for a layer that is not on
    it. `compute_shares` are an answer token's multiply-adds by head, over the full path's with the exact head."""

    name: str
    modules: list[str]
    width: str | None
    exit: str
    num_exit_layers: int
    is_full: bool
    lit: list[float]
    compute_shares: dict[HeadKind, float]
    figures: list[TaskFigures]


class PrecisionReply(Reply, frozen=True, kw_only=True):
    name: str
    weight_bytes: int
    heads: list[HeadKind]


class FileReply(Reply, frozen=True, kw_only=True):
    name: str
    size_bytes: int


class StudentFacts(Reply, frozen=True, kw_only=True):
    """A student as it was built. `paths` are shallowest first; `precision` is the one that serves."""

    name: str
    source: str
    licence: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_context_tokens: int
    modules: list[ModuleReply]
    paths: list[PathReply]
    precision: str
    precisions: list[PrecisionReply]
    files: list[FileReply]
    is_remote: bool


class FactsReply(Reply, frozen=True, kw_only=True):
    """Has what changes only with the students. `has_admin` says whether there are admin endpoints, `needs_key` whether
    requests need an API key."""

    version: str
    students: list[StudentFacts]
    has_admin: bool
    needs_key: bool
    cache: Literal["on", "off"]


class ShelfStudent(Reply, frozen=True, kw_only=True):
    """A student's folder that is there and can be added by its name. `is_served` says that the pool has that name."""

    name: str
    size_bytes: int
    is_served: bool


class ShelfReply(Reply, frozen=True, kw_only=True):
    students: list[ShelfStudent]


class ShelfRequest(RequestBody, frozen=True, kw_only=True):
    """The name of a student's folder in one of the configured folders; never a path."""

    name: str


shelf_decoder = msgspec.json.Decoder(ShelfRequest)
