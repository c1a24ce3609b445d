"""Students that come and go, without HTTP: what is refused, what becomes of a failed opening, and the end."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.errors import BadRequest, ConfigError, InvalidParameter, NotFound, Stopping
from server.context import Context, make_context
from server.lifecycle.student_changes import Arrival, StudentChanges
from server.settings.config import ServerConfig, StudentConfig
from server.students.open_student import Opened
from tests.server.conftest import make_engine, make_student, open_scripted


class Opener:
    """Opens scripted students once it may, or fails with the error it was given."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.failure: Exception | None = None

    def __call__(self, config: StudentConfig) -> Opened:
        assert self.may_go_on.wait(10)
        if self.failure is not None:
            raise self.failure
        assert config.name is not None
        assert config.folder is not None
        return open_scripted(make_student(config.folder, config.name), make_engine({}, student=config.name))


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
async def context(opener: Opener, tmp_path: Path) -> AsyncIterator[Context]:
    first = open_scripted(make_student(tmp_path, "first"), make_engine({}, student="first"))
    made = make_context(ServerConfig(grace_s=0.0), [first], opener=opener)
    made.attach()
    yield made
    await made.stop_engines()


@pytest.fixture
async def changes(context: Context, opener: Opener) -> AsyncIterator[StudentChanges]:
    made = StudentChanges(context)
    yield made
    opener.may_go_on.set()
    await made.close()


async def ended(changes: StudentChanges) -> None:
    while changes._tasks:
        await asyncio.sleep(0.001)


def names(context: Context) -> list[str]:
    return [student.name for student in context.students]


async def test_added_student_joins_the_pool(changes: StudentChanges, context: Context, tmp_path: Path) -> None:
    arrival = changes.add("second", StudentConfig(folder=tmp_path))
    assert (arrival.error, arrival.config.name) == (None, "second")
    await ended(changes)
    assert names(context) == ["first", "second"]
    assert changes.arrivals == {}


@pytest.mark.parametrize("name", ["first", "coming", "auto"])
async def test_name_that_is_taken_is_refused(
    changes: StudentChanges, opener: Opener, tmp_path: Path, name: str
) -> None:
    opener.may_go_on.clear()
    changes.add("coming", StudentConfig(folder=tmp_path))
    with pytest.raises(InvalidParameter) as caught:
        changes.add(name, StudentConfig(folder=tmp_path))
    assert caught.value.param == "name"


async def test_server_that_stops_takes_no_students(changes: StudentChanges, context: Context, tmp_path: Path) -> None:
    context.drain.is_draining = True
    with pytest.raises(Stopping):
        changes.add("second", StudentConfig(folder=tmp_path))


@pytest.mark.parametrize(
    ("failure", "told"), [(ConfigError("no manifest"), "no manifest"), (KeyError("tensor"), "could not be opened")]
)
async def test_student_that_cannot_be_opened_says_why_until_it_is_removed(
    changes: StudentChanges, opener: Opener, context: Context, tmp_path: Path, failure: Exception, told: str
) -> None:
    opener.failure = failure
    changes.add("second", StudentConfig(folder=tmp_path))
    await ended(changes)
    assert told in (changes.arrivals["second"].error or "")
    removed = changes.remove("second")
    assert isinstance(removed, Arrival)
    assert (changes.arrivals, names(context)) == ({}, ["first"])


async def test_failed_arrival_may_be_added_again(changes: StudentChanges, opener: Opener, tmp_path: Path) -> None:
    opener.failure = ConfigError("no manifest")
    changes.add("second", StudentConfig(folder=tmp_path))
    await ended(changes)
    opener.failure = None
    changes.add("second", StudentConfig(folder=tmp_path))
    await ended(changes)
    assert changes.arrivals == {}


async def test_student_that_is_being_opened_cannot_be_removed(
    changes: StudentChanges, opener: Opener, tmp_path: Path
) -> None:
    opener.may_go_on.clear()
    changes.add("second", StudentConfig(folder=tmp_path))
    with pytest.raises(BadRequest, match="still being opened"):
        changes.remove("second")


async def test_removed_student_is_leaving_until_its_engine_has_stopped(
    changes: StudentChanges, context: Context
) -> None:
    context.pool.drain("first")
    changes.remove("first")
    assert (names(context), list(context.leaving)) == ([], ["first"])
    for change in (changes.remove, changes.resume):
        with pytest.raises(NotFound, match="removed already"):
            change("first")
    await ended(changes)
    assert context.leaving == {}


async def test_drained_student_is_resumed(changes: StudentChanges, context: Context) -> None:
    context.pool.drain("first")
    assert not changes.resume("first").is_draining
    with pytest.raises(NotFound):
        changes.resume("nobody")


async def test_close_gives_up_what_is_under_way(
    changes: StudentChanges, opener: Opener, context: Context, tmp_path: Path
) -> None:
    opener.may_go_on.clear()
    changes.add("second", StudentConfig(folder=tmp_path))
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_later(0.01, opener.may_go_on.set)
    await changes.close()
    assert names(context) == ["first"]
