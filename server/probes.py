"""What orchestrators ask: is the process well, may it get requests, how far is loading, which version."""

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from engines.contract import EngineStatus
from server.chat import Handler
from server.context import Context
from server.metrics import CONTENT_TYPE
from server.replies import json_response
from server.schema import HealthReply, PathProgress, ProgressReply, VersionReply

RETRY = {"retry-after": "1"}


def health_handler(context: Context) -> Handler:
    """200 from the first moment on; 503 only for an engine that a restart alone can mend."""

    async def health(request: Request) -> Response:
        status = context.engine.status()
        word: Literal["ok", "unhealthy"] = "ok" if status.is_healthy else "unhealthy"
        return json_response(HealthReply(status=word, error=status.error), 200 if status.is_healthy else 503)

    return health


def ready_handler(context: Context) -> Handler:
    """503 until the default path can be served, and again from the first signal to stop."""

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
    async def show_version(request: Request) -> Response:
        variant = context.engine.status().variant
        return json_response(
            VersionReply(version=context.version, student=context.student.manifest.name, variant=variant)
        )

    return show_version


def metrics_handler(context: Context) -> Handler:
    async def metrics(request: Request) -> Response:
        return Response(context.metrics.render(), media_type=CONTENT_TYPE)

    return metrics


def describe_progress(context: Context) -> ProgressReply:
    status = context.engine.status()
    deepest = max(status.paths, key=lambda path: path.num_stages)
    return ProgressReply(
        status=_word(context, status),
        student=status.student,
        loaded_share=round(deepest.num_loaded_stages / deepest.num_stages, 4),
        paths=[
            PathProgress(
                path=path.path,
                is_servable=path.is_servable,
                is_default=path.is_default,
                num_loaded_stages=path.num_loaded_stages,
                num_stages=path.num_stages,
            )
            for path in status.paths
        ],
        error=status.error,
    )


def _word(context: Context, status: EngineStatus) -> Literal["ready", "loading", "draining", "unhealthy"]:
    if not status.is_healthy:
        return "unhealthy"
    if context.drain.is_draining:
        return "draining"
    return "ready" if status.is_ready else "loading"
