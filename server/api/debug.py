"""`GET /debug/state`, behind the admin key: what every engine, its admission and the cache are doing now. Ids and
numbers, never anything of a prompt or an answer."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from engines.contract import EngineStatus
from engines.sequence import SequenceState
from models.errors import EngineUnhealthy
from router.decision import Priority
from server.api.admin import check_key
from server.api.handler import Handler
from server.api.online_quality import describe_quality
from server.api.probes import paths_of
from server.context import Context
from server.students.student import ServedStudent
from server.wire.debug import CacheState, DebugReply, DoorState, EngineState, MemoryState, SequenceReply, StudentState
from server.wire.replies import json_response

ENGINE_WAIT_S = 2.0
"""How long to wait for an engine's thread, which answers between two steps."""


def debug_handler(context: Context) -> Handler:
    async def show_state(request: Request) -> Response:
        check_key(context, request)
        return json_response(await describe_state(context))

    return show_state


async def describe_state(context: Context) -> DebugReply:
    students = (*context.students, *context.leaving.values())
    return DebugReply(
        version=context.version,
        is_draining=context.drain.is_draining,
        open_requests=sorted(context.drain.open_keys),
        students=list(await asyncio.gather(*(_describe(student) for student in students))),
        cache=describe_cache(context),
        online_quality=describe_quality(context),
    )


async def _describe(student: ServedStudent) -> StudentState:
    """For an engine that does not answer, `integrity` says so."""
    engine = student.engine
    sequences: list[SequenceState] = []
    integrity: list[str] = []
    try:
        sequences = await asyncio.to_thread(engine.sequences, ENGINE_WAIT_S)
        integrity = await asyncio.to_thread(engine.audit, ENGINE_WAIT_S)
    except EngineUnhealthy as error:
        integrity = [error.message]
    status = engine.status()
    return StudentState(
        name=student.name,
        status=student.state().health.value,
        variant=status.variant,
        kv_precision=status.kv_precision,
        head=status.head,
        error=status.error_detail or status.error,
        integrity=integrity,
        paths=paths_of(student),
        engine=describe_engine(status),
        running=[_sequence(one) for one in sequences if one.slot is not None],
        waiting=[_sequence(one) for one in sequences if one.slot is None],
        door=describe_admission(student),
    )


def describe_engine(status: EngineStatus) -> EngineState:
    return EngineState(
        num_accepted=status.num_accepted,
        num_steps=status.num_steps,
        num_failed_steps=status.num_failed_steps,
        num_preemptions=status.num_preemptions,
        num_pauses=status.num_pauses,
        num_prompt_tokens=status.num_prompt_tokens,
        num_generation_tokens=status.num_generation_tokens,
        kv=MemoryState(used_bytes=status.kv_used_bytes, capacity_bytes=status.kv_capacity_bytes),
        prefix_cache_bytes=status.prefix_cache_bytes,
        prefix_query_tokens=dict(status.prefix_query_tokens),
        prefix_hit_tokens=dict(status.prefix_hit_tokens),
        stage_runs=dict(status.stage_runs),
        stage_rows=dict(status.stage_rows),
    )


def _sequence(state: SequenceState) -> SequenceReply:
    return SequenceReply(
        id=state.id,
        status=state.status.value,
        path=state.path,
        head=state.head,
        slot=state.slot,
        num_prompt_tokens=state.num_prompt_tokens,
        num_cached_tokens=state.num_cached_tokens,
        num_computed_tokens=state.num_computed_tokens,
        num_completion_tokens=state.num_completion_tokens,
        max_completion_tokens=state.max_completion_tokens,
        age_ms=round(state.age_s * 1000, 1),
    )


def describe_admission(student: ServedStudent) -> DoorState:
    admission = student.admission.turns
    return DoorState(
        num_running=admission.running.num_sequences,
        running_tokens=admission.running.num_tokens,
        num_queued={priority.value: admission.num_waiting_in(priority) for priority in Priority},
        queued_tokens=admission.queued.num_tokens,
        refusals=dict(admission.refusals),
        drain_tokens_per_s=student.admission.pace.drain.tokens_per_s,
    )


def describe_cache(context: Context) -> CacheState:
    cache = context.cache
    store = cache.store.status()
    return CacheState(
        is_enabled=cache.is_enabled,
        outcomes={outcome.value: count for outcome, count in cache.outcomes.items()},
        num_generations=len(cache.flights),
        num_stored=cache.num_stored,
        num_entries=store.num_entries,
        num_bytes=store.num_bytes,
    )
