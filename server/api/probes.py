"""What orchestrators ask: is the process healthy, may it get requests, how far is loading, which version."""

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from router.decision import Health
from router.pool import AUTO
from server.api.handler import Handler
from server.context import Context
from server.students.student import ServedStudent, find_student
from server.telemetry.metrics import CONTENT_TYPE
from server.wire.replies import json_response
from server.wire.status import HealthReply, PathProgress, ProgressReply, StudentProgress, StudentStatus, VersionReply

RETRY = {"retry-after": "1"}


def health_handler(context: Context) -> Handler:
    """200 from the first moment on; 503 only when every student has an engine that needs a restart."""

    async def health(request: Request) -> Response:
        error = _error_of_all([progress_of(context, student) for student in context.students])
        word: Literal["ok", "unhealthy"] = "ok" if error is None else "unhealthy"
        return json_response(HealthReply(status=word, error=error), 200 if error is None else 503)

    return health


def ready_handler(context: Context) -> Handler:
    """503 until some student's default path can be served, and again from the first signal to stop."""

    async def ready(request: Request) -> Response:
        progress = describe_progress(context)
        return json_response(progress) if progress.status == "ready" else json_response(progress, 503, RETRY)

    return ready


def startup_handler(context: Context) -> Handler:
    """Always 200: how far loading is."""

    async def startup(request: Request) -> Response:
        return json_response(describe_progress(context))

    return startup


def version_handler(context: Context) -> Handler:
    """The versions of a server, and of the student of `?model=`, or of the first one."""

    async def show_version(request: Request) -> Response:
        model = request.query_params.get("model")
        student = None if model is None and not context.students else find_student(context.students, model or AUTO)
        status = None if student is None else student.engine.status()
        return json_response(
            VersionReply(
                version=context.version,
                student=None if student is None else student.name,
                variant=None if status is None else status.variant,
                kv_precision=None if status is None else status.kv_precision or None,
                head=None if status is None else status.head,
            )
        )

    return show_version


def metrics_handler(context: Context) -> Handler:
    async def metrics(request: Request) -> Response:
        return Response(context.metrics.render(), media_type=CONTENT_TYPE)

    return metrics


def describe_progress(context: Context) -> ProgressReply:
    students = [progress_of(context, student) for student in context.students]
    return ProgressReply(
        status=_word(context, students),
        students=students,
        paths=[progress for student in context.students for progress in paths_of(student)],
        error=_error_of_all(students),
    )


def progress_of(context: Context, student: ServedStudent) -> StudentProgress:
    status, state = student.engine.status(), student.state()
    deepest = max(status.paths, key=lambda path: path.num_stages)
    is_leaving = context.drain.is_draining and state.health is not Health.UNHEALTHY
    return StudentProgress(
        name=student.name,
        status=Health.DRAINING.value if is_leaving else state.health.value,
        loaded_share=round(deepest.num_loaded_stages / deepest.num_stages, 4),
        error=status.error,
    )


def paths_of(student: ServedStudent) -> list[PathProgress]:
    return [
        PathProgress(
            student=student.name,
            path=path.path,
            is_servable=path.is_servable,
            is_default=path.is_default,
            num_loaded_stages=path.num_loaded_stages,
            num_stages=path.num_stages,
        )
        for path in student.engine.status().paths
    ]


def _word(context: Context, students: list[StudentProgress]) -> StudentStatus | Literal["empty"]:
    """The best status of any student: one that is ready suffices."""
    if context.drain.is_draining:
        return "draining" if _error_of_all(students) is None else "unhealthy"
    words = {student.status for student in students}
    ranked: tuple[StudentStatus, ...] = ("ready", "loading", "draining", "unhealthy")
    return next((word for word in ranked if word in words), "empty")


def _error_of_all(students: list[StudentProgress]) -> str | None:
    """Why the students are unhealthy; None while one is not."""
    errors = {student.name: student.error for student in students if student.error is not None}
    if not students or len(errors) < len(students):
        return None
    if len(errors) == 1:
        return next(iter(errors.values()))
    return "; ".join(f"{name}: {error}" for name, error in errors.items())
