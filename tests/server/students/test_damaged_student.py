"""A student whose files are not those of its manifest is never ready, and shares no answers with one that is whole."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.config import EngineConfig
from engines.contract import EngineStatus
from models.building.build import build_student
from models.errors import WeightsError
from server.settings.config import StudentConfig
from server.students.open_student import Opened, make_opener

ENGINE = EngineConfig(precision="fp32", max_running=2)
WAIT_S = 60.0


@pytest.fixture
def folder(tmp_path: Path, tiny_source: Any) -> Path:
    out = tmp_path / "student"
    build_student(tiny_source("llama"), out, precisions=("fp32",))
    return out


@pytest.fixture
def settle() -> Iterator[Callable[[Opened], EngineStatus]]:
    """Start an engine and wait until it is ready or broken."""
    started: list[Opened] = []

    def settle(opened: Opened) -> EngineStatus:
        opened.engine.start(lambda events: None)
        started.append(opened)
        pause = threading.Event()
        for _ in range(int(WAIT_S * 100)):
            status = opened.engine.status()
            if status.is_ready or not status.is_healthy:
                return status
            pause.wait(0.01)
        raise AssertionError("neither ready nor broken")

    yield settle
    for opened in started:
        opened.engine.stop(0.0)


def damage(file: Path) -> None:
    """Zeros in the last third: numbers that load and compute."""
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(size * 2 // 3)
        stream.write(bytes(size - size * 2 // 3))


@pytest.mark.parametrize("name", ["knowledge.fp32.weights", "adapter.fp32.weights", "head.fp32.weights"])
def test_student_with_damaged_weights_is_never_ready(
    folder: Path, settle: Callable[[Opened], EngineStatus], name: str
) -> None:
    damage(folder / name)
    status = settle(make_opener(ENGINE)(StudentConfig(folder=folder)))
    assert (status.is_healthy, status.is_ready) == (False, False)
    assert f"{name} is damaged" in str(status.error_detail)
    assert name not in str(status.error)


@pytest.mark.parametrize("name", ["embedding.npy", "tokenizer.json"])
def test_student_with_another_damaged_file_does_not_open(folder: Path, name: str) -> None:
    damage(folder / name)
    with pytest.raises(WeightsError, match=rf"{name} is damaged.*fenhe build"):
        make_opener(ENGINE)(StudentConfig(folder=folder))


def test_student_that_is_opened_again_is_verified_again(folder: Path, settle: Callable[[Opened], EngineStatus]) -> None:
    opener, config = make_opener(ENGINE), StudentConfig(folder=folder)
    assert settle(opener(config)).is_ready
    fresh = folder / "fresh"
    fresh.write_bytes((folder / "adapter.fp32.weights").read_bytes())
    damage(fresh)
    fresh.replace(folder / "adapter.fp32.weights")
    assert not settle(opener(config)).is_healthy


def test_student_is_served_as_it_is_where_verification_is_off(
    folder: Path, settle: Callable[[Opened], EngineStatus]
) -> None:
    damage(folder / "knowledge.fp32.weights")
    opened = make_opener(ENGINE, verify=False)(StudentConfig(folder=folder))
    assert settle(opened).is_ready
    assert not opened.student.is_verified
