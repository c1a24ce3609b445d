"""The admin endpoints, behind a key of their own: they change students, result cache and settings at run time."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from models.building.cached_student import name_at
from models.errors import (
    BadRequest,
    ConfigError,
    Forbidden,
    InvalidParameter,
    NotFound,
    Unauthorized,
    UnsupportedField,
    WeightsError,
)
from router.cache.key import key_prefix
from server.access.keys import bearer_digests, is_one_of
from server.api.handler import Handler
from server.context import Context
from server.generation.limits import read_struct
from server.lifecycle.reload import reload
from server.lifecycle.student_changes import Arrival, StudentChanges
from server.settings.config import StudentConfig
from server.students.student import ServedStudent
from server.threads import run_in_daemon_thread
from server.wire.replies import json_response
from server.wire.status import FlushReply, StudentList, StudentReply, StudentRequest, student_decoder

ACCEPTED = 202


def students_handler(context: Context, changes: StudentChanges) -> Handler:
    async def list_students(request: Request) -> Response:
        check_key(context, request)
        return json_response(StudentList(students=list(_describe_all(context, changes))))

    return list_students


def add_handler(context: Context, changes: StudentChanges) -> Handler:
    """202: the folder holds a student, or a model that one is built from. It is opened in the background; the list
    shows how far it is."""

    async def add_student(request: Request) -> Response:
        check_key(context, request)
        body = await read_struct(request, context, student_decoder)
        folder = _folder_of(body)
        own_name = await run_in_daemon_thread(partial(_name_in, folder))
        name = own_name if body.name is None else body.name
        config = StudentConfig(folder=folder, name=name, tasks=tuple(body.tasks or ()))
        return json_response(describe_arrival(changes.add(name, config)), ACCEPTED)

    return add_student


def drain_handler(context: Context, changes: StudentChanges) -> Handler:
    async def drain_student(request: Request) -> Response:
        check_key(context, request)
        return json_response(describe_student(context.pool.drain(request.path_params["name"])))

    return drain_student


def resume_handler(context: Context, changes: StudentChanges) -> Handler:
    async def resume_student(request: Request) -> Response:
        check_key(context, request)
        return json_response(describe_student(changes.resume(request.path_params["name"])))

    return resume_student


def remove_handler(context: Context, changes: StudentChanges) -> Handler:
    """202: it gets no new requests, and its engine stops once its sequences have ended or the grace period is over."""

    async def remove_student(request: Request) -> Response:
        check_key(context, request)
        removed = changes.remove(request.path_params["name"])
        described = describe_arrival(removed) if isinstance(removed, Arrival) else _describe_leaving(removed)
        return json_response(described, ACCEPTED)

    return remove_student


def flush_handler(context: Context) -> Handler:
    async def flush_cache(request: Request) -> Response:
        check_key(context, request)
        return json_response(FlushReply(flushed=await context.cache.flush(_flushed_prefix(request))))

    return flush_cache


def reload_handler(context: Context) -> Handler:
    """Read settings and keys again and apply what may change; 400 when something is wrong, and the old ones stay."""

    async def reload_settings(request: Request) -> Response:
        check_key(context, request)
        return json_response(await reload(context))

    return reload_settings


def check_key(context: Context, request: Request) -> None:
    """Raises: NotFound when there are no admin endpoints; Unauthorized; Forbidden for an API key."""
    wanted = context.config.admin.key_sha256
    if wanted is None:
        raise NotFound(
            "the admin endpoints are off; switch them on with `[admin] key_sha256 = ...`, "
            "the SHA-256 of a key in hexadecimal"
        )
    authorization = request.headers.get("authorization", "")
    if not is_one_of(wanted.lower(), bearer_digests(authorization)):
        if context.keyring.find(authorization) is not None:
            raise Forbidden("this API key may not use the admin endpoints; they need the admin key")
        raise Unauthorized("the admin endpoints need `Authorization: Bearer KEY` with the admin key")


def _flushed_prefix(request: Request) -> str:
    """The prefix of the keys to forget; empty for all. Raises: BadRequest and its kinds."""
    query = request.query_params
    for name in query:
        if name not in {"student", "prefix"}:
            raise UnsupportedField(f"unknown parameter {name[:100]!r}; send `student` or `prefix`", param=name[:100])
    if len(query.multi_items()) > 1:
        raise BadRequest("send one `student` or one `prefix`, not several")
    if "student" in query:
        if not query["student"]:
            raise InvalidParameter("`student` is empty; leave it out to flush everything", param="student")
        return key_prefix(query["student"])
    return query.get("prefix", "")


def _folder_of(body: StudentRequest) -> Path:
    """Raises: InvalidParameter for a name that no file can have."""
    if "\0" in body.folder:
        raise InvalidParameter("a folder's name cannot hold a NUL character", param="folder")
    try:
        return Path(body.folder).expanduser()
    except RuntimeError:
        raise InvalidParameter(f"`~` in {body.folder[:200]!r} names no user's home folder", param="folder") from None


def _name_in(folder: Path) -> str:
    """Of a student its manifest's, of a model its file's. Raises: BadRequest where there is neither."""
    try:
        return name_at(folder)
    except (ConfigError, WeightsError, OSError) as error:
        raise BadRequest(str(error), param="folder") from None


def _describe_all(context: Context, changes: StudentChanges) -> Iterator[StudentReply]:
    yield from map(describe_student, context.students)
    yield from map(describe_arrival, changes.arrivals.values())
    yield from map(_describe_leaving, context.leaving.values())


def describe_student(student: ServedStudent) -> StudentReply:
    state = student.state()
    return StudentReply(
        name=student.name,
        status=state.health.value,
        folder=str(student.student.folder),
        tasks=sorted(student.tasks),
        error=student.engine.status().error_detail or state.error,
        num_running=state.num_running,
        num_waiting=state.num_waiting,
        variant=state.variant,
        head=student.fixed.head,
    )


def _describe_leaving(student: ServedStudent) -> StudentReply:
    return msgspec.structs.replace(describe_student(student), status="stopping", error=None)


def describe_arrival(arrival: Arrival) -> StudentReply:
    return StudentReply(
        name=arrival.name,
        status="opening" if arrival.error is None else "failed",
        folder=str(arrival.config.folder),
        tasks=sorted(arrival.config.tasks),
        error=arrival.error,
    )
