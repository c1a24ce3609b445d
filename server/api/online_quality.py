"""Online quality for operators: its part of `/debug/state`, and the endpoints that pin paths."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParameter, UnsupportedField
from router.quality.controller import Pinned
from router.tasks import TASKS, Task
from server.api.admin import check_key
from server.api.handler import Handler
from server.context import Context
from server.generation.limits import read_struct
from server.quality.online_quality import DatedChange, Row
from server.wire.online_quality import (
    OnlineQualityState,
    PathQuality,
    PinList,
    PinState,
    QualityChange,
    pin_decoder,
)
from server.wire.replies import json_response

PARAMETERS = ("task", "path", "student")


def pin_handler(context: Context) -> Handler:
    """Keep a path in default routing of a task, or out of it, until it is unpinned."""

    async def pin_path(request: Request) -> Response:
        check_key(context, request)
        body = await read_struct(request, context, pin_decoder)
        pinned = Pinned(_student_of(context, body.path, body.student), body.task, body.path)
        context.quality.pin(pinned, is_open=body.is_open, reason=_one_line(body.reason))
        return json_response(PinList(pins=_pins(context)))

    return pin_path


def unpin_handler(context: Context) -> Handler:
    """The figures decide again."""

    async def unpin_path(request: Request) -> Response:
        check_key(context, request)
        query = request.query_params
        for name in query:
            if name not in PARAMETERS:
                raise UnsupportedField(
                    f"unknown parameter {name[:100]!r}; send {', '.join(PARAMETERS)}", param=name[:100]
                )
        path = query.get("path", "")
        context.quality.unpin(
            Pinned(_pinned_student(context, path, query.get("student")), _task(query.get("task")), path)
        )
        return json_response(PinList(pins=_pins(context)))

    return unpin_path


def describe_quality(context: Context) -> OnlineQualityState:
    quality, scorer = context.quality, context.scorer
    config = quality.config
    is_off = config.mode == "off"
    held = {} if is_off else scorer.held_by_student()
    return OnlineQualityState(
        mode=config.mode,
        held=None if is_off else scorer.why_held(held),
        held_by_student=held,
        is_scoring=scorer.is_scoring,
        num_waiting=scorer.num_waiting,
        num_scored=quality.num_scored.total(),
        left_out=dict(quality.left_out),
        min_samples=config.min_samples,
        tasks=[_path_quality(context, row) for row in quality.rows()],
        pins=_pins(context),
        changes=[_change(one) for one in reversed(quality.changes)],
    )


def _path_quality(context: Context, row: Row) -> PathQuality:
    use, figure = row.use, row.figure
    scored = context.quality.num_scored
    return PathQuality(
        student=use.student,
        task=use.task,
        path=use.path,
        head=use.head,
        kept=None if figure is None else round(figure.kept, 4),
        low=None if figure is None else round(figure.low, 4),
        high=None if figure is None else round(figure.high, 4),
        gap_nats=None if figure is None else round(figure.gap, 4),
        agreement=None if figure is None else round(figure.agreement, 4),
        expected_agreement=None if figure is None else round(figure.expected_agreement, 4),
        num_samples=0.0 if figure is None else round(figure.effective_samples, 1),
        num_scored=scored[use, False] + scored[use, True],
        floor=row.floor,
        is_open=row.standing.is_open,
        decided_by=row.standing.by,
        reason=row.standing.reason,
    )


def _pins(context: Context) -> list[PinState]:
    return [
        PinState(
            student=pinned.student,
            task=pinned.task,
            path=pinned.path,
            is_open=pin.is_open,
            decided_by=pin.by,
            reason=pin.reason,
        )
        for pinned, pin in sorted(context.quality.pins.items())
    ]


def _change(one: DatedChange) -> QualityChange:
    change = one.change
    use = change.use
    return QualityChange(
        at=round(one.at, 3),
        student=use.student,
        task=use.task,
        path=use.path,
        head=use.head,
        action=change.action,
        reason=change.reason,
    )


def _one_line(text: str) -> str:
    """Without line breaks and other signs that cannot be seen: it goes into the log."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _student_of(context: Context, path: str, named: str | None) -> str:
    """The student whose path is meant. Raises: InvalidParameter; NotFound for a student that is not there."""
    students = context.students if named is None else (context.pool.find(named),)
    having = [one.name for one in students if any(path == other.name for other in one.manifest.paths)]
    return _only(having, f"no student here has a path `{path[:200]}`", "path")


def _pinned_student(context: Context, path: str, named: str | None) -> str:
    """The student of a pin, which need not be there any more. Raises: InvalidParameter."""
    if named is not None:
        return named
    return _only({pin.student for pin in context.quality.pins if pin.path == path}, "there is no such pin", "path")


def _only(names: Sequence[str] | set[str], none: str, param: str) -> str:
    """Raises: InvalidParameter where there is none, or more than one."""
    if not names:
        raise InvalidParameter(none, param=param)
    if len(names) > 1:
        raise InvalidParameter(f"several students have it: name one of {', '.join(sorted(names))}", param="student")
    return next(iter(names))


def _task(given: str | None) -> Task:
    """Raises: InvalidParameter."""
    task = next((task for task in TASKS if task == given), None)
    if task is None:
        raise InvalidParameter(f"`task` must be one of {', '.join(TASKS)}, not {(given or '')[:100]!r}", param="task")
    return task
