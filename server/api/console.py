"""`GET /console/state` and `GET /console/facts`: what the console shows of a running server, and of its students.

Whoever may send requests may read them: numbers and names, never anything of a prompt or an answer, and no ids.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engines.remote.student import RemoteStudent
from engines.sequence import SequenceState
from models.errors import EngineUnhealthy
from models.evaluation.compute import compute_share
from models.evaluation.verdicts import GateLimits, gate
from models.student.manifest import Manifest, PathFigures, StudentPath
from server.api.console_page import is_console_on
from server.api.debug import describe_admission, describe_cache, describe_engine
from server.api.handler import Handler
from server.api.online_quality import describe_quality
from server.api.probes import paths_of
from server.context import Context
from server.students.student import ServedStudent
from server.wire.console import (
    FactsReply,
    FigureReply,
    FileReply,
    LiveReply,
    LiveStudent,
    ModuleReply,
    PathReply,
    PrecisionReply,
    RoutedReply,
    RowReply,
    StudentFacts,
    TaskFigures,
)
from server.wire.replies import json_response

ENGINE_WAIT_S = 0.5
"""How long to wait for an engine's thread, which answers between two steps."""
MAX_ROWS = 256
FRESH_S = 0.2
"""How old a state may be: several pages that watch ask an engine no more often than one."""
NO_STORE = {"cache-control": "no-store"}


def state_handler(context: Context) -> Handler:
    watch = Watch(context)

    async def show_console_state(request: Request) -> Response:
        require_console(context)
        return json_response(await watch.state(), headers=NO_STORE)

    return show_console_state


def facts_handler(context: Context) -> Handler:
    async def show_console_facts(request: Request) -> Response:
        require_console(context)
        facts = FactsReply(
            version=context.version,
            students=[describe_facts(student, context.router.limits) for student in context.students],
            has_admin=context.config.admin.key_sha256 is not None,
            needs_key=len(context.keyring) > 0,
            cache="on" if context.cache.is_enabled else "off",
        )
        return json_response(facts, headers=NO_STORE)

    return show_console_facts


def require_console(context: Context) -> None:
    """Raises: HTTPException 404 where the console is off."""
    if not is_console_on(context):
        raise HTTPException(404)


class Watch:
    """The state of the server. Engines are asked at most once in `FRESH_S`; live quality is always that of now, so that
    who pins a path sees it pinned. Owned by the loop."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._turn = asyncio.Lock()
        self._last: LiveReply | None = None

    async def state(self) -> LiveReply:
        async with self._turn:
            if self._last is not None and time.monotonic() - self._last.at_s <= FRESH_S:
                return msgspec.structs.replace(self._last, online_quality=describe_quality(self._context))
            self._last = await describe_live(self._context)
            return self._last


async def describe_live(context: Context) -> LiveReply:
    return LiveReply(
        version=context.version,
        is_draining=context.drain.is_draining,
        num_open_requests=len(context.drain.open_keys),
        students=list(await asyncio.gather(*(_live(context, student) for student in context.students))),
        cache=describe_cache(context),
        at_s=time.monotonic(),
        online_quality=describe_quality(context),
    )


async def _live(context: Context, student: ServedStudent) -> LiveStudent:
    status, state = student.engine.status(), student.state()
    rows: list[RowReply] | None = None
    with contextlib.suppress(EngineUnhealthy):  # which the page is told by there being no rows
        sequences = await asyncio.to_thread(student.engine.sequences, ENGINE_WAIT_S)
        rows = [_row(one) for one in sequences if one.slot is not None][:MAX_ROWS]
    return LiveStudent(
        name=student.name,
        status=state.health.value,
        variant=status.variant,
        head=status.head,
        error=status.error,
        paths=paths_of(student),
        engine=describe_engine(status),
        rows=rows,
        num_rows=status.num_running,
        num_waiting=status.num_waiting,
        door=describe_admission(student),
        routed=_routed(context, student.name),
    )


def _routed(context: Context, student: str) -> list[RoutedReply]:
    return [
        RoutedReply(task=one.task, path=one.path, head=one.head, num_requests=count)
        for one, count in sorted(context.metrics.routes.counts.items())
        if one.student == student
    ]


def _row(state: SequenceState) -> RowReply:
    return RowReply(
        path=state.path,
        head=state.head,
        status=state.status.value,
        num_prompt_tokens=state.num_prompt_tokens,
        num_computed_tokens=state.num_computed_tokens,
        num_completion_tokens=state.num_completion_tokens,
        max_completion_tokens=state.max_completion_tokens,
    )


def describe_facts(student: ServedStudent, limits: GateLimits) -> StudentFacts:
    manifest, variant = student.manifest, student.engine.status().variant
    return StudentFacts(
        name=student.name,
        source=manifest.source,
        licence=manifest.licence,
        num_layers=sum(module.num_layers for module in manifest.modules),
        hidden_size=manifest.architecture.hidden_size,
        vocab_size=manifest.architecture.vocab_size,
        max_context_tokens=student.max_context_tokens,
        modules=[
            ModuleReply(name=one.name, first_layer=one.first_layer, num_layers=one.num_layers)
            for one in manifest.modules
        ],
        paths=[describe_path(manifest, path, variant, limits) for path in manifest.paths_by_depth],
        precision=variant,
        precisions=[
            PrecisionReply(name=one.name, weight_bytes=one.weight_bytes, heads=list(manifest.heads_at(one.name)))
            for one in manifest.variants
        ],
        files=[FileReply(name=file.name, size_bytes=file.size_bytes) for file in manifest.files],
        is_remote=isinstance(student.student, RemoteStudent),
    )


def describe_path(manifest: Manifest, path: StudentPath, variant: str, limits: GateLimits) -> PathReply:
    found = [one for one in manifest.figures if one.variant == variant and one.path == path.name]
    return PathReply(
        name=path.name,
        modules=list(path.modules),
        width=path.width or None,
        exit=path.exit,
        num_exit_layers=manifest.exit(path.exit).num_blocks,
        is_full=path == manifest.full_path,
        lit=list(_lit(manifest, path)),
        compute_shares={
            head: round(compute_share(manifest, path, head=head), 4) for head in manifest.heads_at(variant)
        },
        figures=[_figures(one, limits) for one in found] or list(_retention(manifest, path, variant)),
    )


def _lit(manifest: Manifest, path: StudentPath) -> Iterator[float]:
    whole = max(1, manifest.architecture.intermediate_size)
    for module in manifest.modules:
        for layer in range(module.first_layer, module.first_layer + module.num_layers):
            is_on = module.name in path.modules
            yield round(manifest.neurons(path, layer) / whole, 4) if is_on else 0.0


def _figures(figures: PathFigures, limits: GateLimits) -> TaskFigures:
    return TaskFigures(
        task=figures.task,
        language=figures.language,
        head=figures.head,
        gate=gate(figures, limits),
        fidelity=figures.verdict_fidelity,
        field=figures.verdict_field,
        accuracy=_figure(figures, "accuracy_kept", "blimp_kept"),
        information=_figure(figures, "information_kept"),
        agreement=_figure(figures, "agreement"),
        perplexity_ratio_own=figures.perplexity_ratio_own,
        perplexity_ratio_human=figures.perplexity_ratio_human,
    )


def _figure(figures: PathFigures, *names: str) -> FigureReply:
    """The first of some figures that was measured."""
    for name in names:
        kept: float | None = getattr(figures, name)
        if kept is not None:
            low, high = figures.intervals.get(name, (None, None))
            return FigureReply(kept=kept, low=low, high=high)
    return NOT_MEASURED


NOT_MEASURED = FigureReply(kept=None, low=None, high=None)


def _retention(manifest: Manifest, path: StudentPath, variant: str) -> Iterator[TaskFigures]:
    """What students without figures have: one score per task."""
    for one in manifest.retention:
        if one.path == path.name and one.variant == variant:
            yield TaskFigures(
                task=one.task,
                language="",
                head="exact",
                gate="undecided",
                fidelity="undecided",
                field="undecided",
                accuracy=FigureReply(kept=one.score, low=one.low, high=one.high),
                information=NOT_MEASURED,
                agreement=NOT_MEASURED,
                perplexity_ratio_own=None,
                perplexity_ratio_human=None,
            )
