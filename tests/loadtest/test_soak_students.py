"""The soak's damaged student: what the server says of it is judged, and nothing of it stays."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from loadtest.soak_students import NAME, DamagedStudents


class Server:
    """Says of a student that was added one status after the other, the last one until it is removed."""

    def __init__(self, source: Path, *statuses: str, keeps: bool = False) -> None:
        self._source = source
        self._statuses = iter(statuses)
        self._keeps = keeps
        self._status: str | None = None
        self.folder: str | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            if self.folder is not None:
                return httpx.Response(400, text="that name is taken")
            self.folder = json.loads(request.content)["folder"]
            self._advance()
            return httpx.Response(202)
        if request.method == "DELETE":
            self.folder = self.folder if self._keeps else None
            return httpx.Response(400 if self._keeps else 202)
        students = [{"name": "good", "status": "ready", "folder": str(self._source)}]
        if self.folder is not None:
            students.append({"name": NAME, "status": str(self._status), "folder": self.folder})
            self._advance()
        return httpx.Response(200, json={"students": students})

    def _advance(self) -> None:
        self._status = next(self._statuses, self._status)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "one.int8.weights").write_bytes(bytes(100))
    return folder


@pytest.fixture
def damaged(tmp_path: Path) -> DamagedStudents:
    return DamagedStudents(folder=tmp_path / "damaged")


def client_of(serve: Callable[[httpx.Request], httpx.Response]) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(serve))


@pytest.mark.parametrize("last", ["failed", "unhealthy"])
async def test_refused_student_is_right_and_goes(source: Path, damaged: DamagedStudents, last: str) -> None:
    server = Server(source, "opening", "loading", last)
    async with client_of(server) as client:
        outcome = await damaged.add_one(client)
        assert (outcome.what, outcome.problem) == (last, None)
        assert server.folder is None
        assert (damaged.folder / "one.int8.weights").read_bytes() != bytes(100)
        assert (source / "one.int8.weights").read_bytes() == bytes(100)


async def test_student_that_gets_ready_is_blamed(source: Path, damaged: DamagedStudents) -> None:
    async with client_of(Server(source, "opening", "ready")) as client:
        assert (await damaged.add_one(client)).problem == "a damaged student was ready"


async def test_student_that_cannot_be_added_is_blamed(source: Path, damaged: DamagedStudents) -> None:
    server = Server(source, "failed")
    server.folder = "/taken"
    async with client_of(server) as client:
        assert (await damaged.add_one(client)).problem == "not taken: that name is taken"


async def test_student_that_stays_is_blamed(
    source: Path, damaged: DamagedStudents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.soak_students.PATIENCE_S", 0.0)
    async with client_of(Server(source, "failed", keeps=True)) as client:
        assert (await damaged.add_one(client)).what == "no end"


async def test_server_that_is_gone_is_blamed(damaged: DamagedStudents) -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as client:
        assert (await damaged.add_one(client)).what == "broken"
