"""`/admin/shelf`: students that lie in the configured folders, to be added by name: no caller names a path."""

from collections.abc import Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from models.errors import ConfigError, NotFound
from models.student.manifest import is_plain_name, read_manifest
from server.api.admin import ACCEPTED, check_key, describe_arrival
from server.api.handler import Handler
from server.context import Context
from server.generation.limits import read_struct
from server.lifecycle.student_changes import StudentChanges
from server.settings.config import StudentConfig
from server.threads import run_in_daemon_thread
from server.wire.console import ShelfReply, ShelfStudent, shelf_decoder
from server.wire.replies import json_response

MAX_FOLDERS = 200


def shelf_handler(context: Context) -> Handler:
    async def list_shelf(request: Request) -> Response:
        check_key(context, request)
        served = {student.name for student in context.students}
        found = await run_in_daemon_thread(lambda: find_students(context.config.console.folders))
        students = [
            ShelfStudent(name=name, size_bytes=size_bytes, is_served=name in served)
            for name, (_, size_bytes) in sorted(found.items())
        ]
        return json_response(ShelfReply(students=students))

    return list_shelf


def add_from_shelf_handler(context: Context, changes: StudentChanges) -> Handler:
    """202: there is such a student. It is opened in the background; `/admin/students` shows how far it is."""

    async def add_from_shelf(request: Request) -> Response:
        check_key(context, request)
        body = await read_struct(request, context, shelf_decoder)
        found = await run_in_daemon_thread(lambda: find_students(context.config.console.folders))
        if body.name not in found:
            raise NotFound(f"there is no student {body.name[:100]!r} in the folders of [console] folders", param="name")
        folder, _ = found[body.name]
        arrival = changes.add(body.name, StudentConfig(folder=folder, name=body.name))
        return json_response(describe_arrival(arrival), ACCEPTED)

    return add_from_shelf


def find_students(folders: tuple[Path, ...]) -> dict[str, tuple[Path, int]]:
    """Folder and size of every student by its folder's name; of two with one name the first. Links are not followed
    out of the configured folders."""
    found: dict[str, tuple[Path, int]] = {}
    for folder in folders:
        for inner in _subfolders(folder):
            if inner.name in found or not is_plain_name(inner.name):
                continue
            try:
                manifest = read_manifest(inner)
            except (ConfigError, OSError):
                continue
            found[inner.name] = (inner, sum(file.size_bytes for file in manifest.files))
    return found


def _subfolders(folder: Path) -> Iterator[Path]:
    try:
        inside = sorted(folder.iterdir())[:MAX_FOLDERS]
    except OSError:
        return
    yield from (one for one in inside if one.is_dir() and one.resolve().parent == folder.resolve())
