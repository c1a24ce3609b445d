"""Students that are added by name: from the configured folders alone, with the admin key alone."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.student.manifest import write_manifest
from server.settings.config import AdminConfig, ConsoleConfig, ServerConfig, StudentConfig
from server.students.open_student import Opened
from tests.server.conftest import (
    SCRIPT,
    Served,
    make_engine,
    make_manifest,
    make_student,
    open_scripted,
    run_server,
    until,
)

KEY = "open sesame"
AUTH = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    shelf = tmp_path / "shelf"
    for name in ("other", "tiny", "empty"):
        (shelf / name).mkdir(parents=True)
    for name in ("other", "tiny"):
        write_manifest(shelf / name, make_manifest(name))
    outside = tmp_path / "outside"
    outside.mkdir()
    write_manifest(outside, make_manifest("outside"))
    (shelf / "link").symlink_to(outside)

    def opener(config: StudentConfig) -> Opened:
        assert config.folder == shelf / "other"
        return open_scripted(make_student(tmp_path, "other"), make_engine(SCRIPT, student="other"))

    config = ServerConfig(
        admin=AdminConfig(key_sha256=hashlib.sha256(KEY.encode()).hexdigest()),
        console=ConsoleConfig(folders=(shelf, tmp_path / "missing")),
    )
    with run_server([open_scripted(make_student(tmp_path), make_engine(SCRIPT))], config, opener=opener) as running:
        yield running


def test_shelf_has_the_students_of_its_folders(served: Served) -> None:
    found = served.http.get("/admin/shelf", headers=AUTH).json()["students"]
    assert [(one["name"], one["is_served"]) for one in found] == [("other", False), ("tiny", True)]


def test_student_is_added_by_its_name(served: Served) -> None:
    reply = served.post("/admin/shelf", {"name": "other"}, headers=AUTH)
    assert (reply.status_code, reply.json()["status"]) == (202, "opening")
    assert until(lambda: [one.name for one in served.context.students] == ["tiny", "other"])


@pytest.mark.parametrize("name", ["../outside", "/etc", "link", "empty", "http://127.0.0.1/x", "", "tiny/../other"])
def test_other_names_are_not_found(served: Served, name: str) -> None:
    assert served.post("/admin/shelf", {"name": name}, headers=AUTH).status_code == 404


def test_shelf_needs_the_admin_key(served: Served) -> None:
    assert served.http.get("/admin/shelf").status_code == 401
    assert served.post("/admin/shelf", {"name": "other"}).status_code == 401
