"""The body of `/debug/state`."""

from models.student.manifest import HeadKind
from server.wire.base import Reply
from server.wire.online_quality import OnlineQualityState
from server.wire.status import PathProgress


class SequenceReply(Reply, frozen=True, kw_only=True):
    """A sequence in an engine. `slot` is null while it waits; computed tokens are those whose KV is written.

    `head` chooses its tokens. `id` is made of the request's x-request-id, a mark of its tenant where there are keys,
    and the choice's index.
    """

    id: str
    status: str
    path: str
    head: HeadKind
    slot: int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_computed_tokens: int
    num_completion_tokens: int
    max_completion_tokens: int
    age_ms: float


class MemoryState(Reply, frozen=True, kw_only=True):
    used_bytes: int
    capacity_bytes: int


class EngineState(Reply, frozen=True, kw_only=True):
    """Counts since the engine started; by stage: modules, exits, `head` and `cheap_head`."""

    num_accepted: int
    num_steps: int
    num_failed_steps: int
    num_preemptions: int
    num_pauses: int
    num_prompt_tokens: int
    num_generation_tokens: int
    kv: MemoryState
    prefix_cache_bytes: int
    prefix_query_tokens: dict[str, int]
    prefix_hit_tokens: dict[str, int]
    stage_runs: dict[str, int]
    stage_rows: dict[str, int]


class DoorState(Reply, frozen=True, kw_only=True):
    """Admission. Tokens are the most requests may use, prompt and longest answer; queued requests are by priority."""

    num_running: int
    running_tokens: int
    num_queued: dict[str, int]
    queued_tokens: int
    refusals: dict[str, int]
    drain_tokens_per_s: float | None


class StudentState(Reply, frozen=True, kw_only=True):
    """`integrity` lists inconsistencies in the engine's state, or that it does not answer; empty when all is well.

    `head` chooses tokens where a request does not demand the exact one. `kv_precision` is empty where an engine keeps
    the KV that is not fenhe's own.
    """

    name: str
    status: str
    variant: str
    kv_precision: str
    head: HeadKind
    error: str | None
    integrity: list[str]
    paths: list[PathProgress]
    engine: EngineState
    running: list[SequenceReply]
    waiting: list[SequenceReply]
    door: DoorState


class CacheState(Reply, frozen=True, kw_only=True):
    """The result cache. Entries and bytes are those in this process, null with Redis."""

    is_enabled: bool
    outcomes: dict[str, int]
    num_generations: int
    num_stored: int
    num_entries: int | None
    num_bytes: int | None


class DebugReply(Reply, frozen=True, kw_only=True):
    """`open_requests` are the ids of all requests that are still being answered."""

    version: str
    is_draining: bool
    open_requests: list[str]
    students: list[StudentState]
    cache: CacheState
    online_quality: OnlineQualityState
