"""A real vLLM that is killed, stopped, and left alone: nobody hangs, and it comes back."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.sequence import FinishReason
from models.building.build import build_student
from models.errors import EngineUnhealthy
from models.sources.source import open_source
from models.student.folder import Student
from tests.engines.vllm.conftest import START_S, WARNINGS, Reference, Served, StartEngine
from tests.engines.vllm.test_families import SIZES

pytestmark = [pytest.mark.vllm, WARNINGS, pytest.mark.timeout(1800)]


@pytest.fixture
def served(tiny_source: Any, tmp_path: Path, start_engine: StartEngine) -> Served:
    folder = tiny_source("llama", **SIZES)
    build_student(folder, tmp_path / "student", modules="knowledge:2,reasoning:1,adapter:1", precisions=("fp32",))
    student = Student.open(tmp_path / "student")
    reference = Reference(source=open_source(folder), student=student)
    made: Served = start_engine(student, reference, max_context_tokens=120)
    assert len(made.answer("full", [5, 6, 7], ignore_eos=True, max_tokens=4)) == 4
    return made


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def processes() -> list[Any]:
    """vLLM's processes, the one that schedules first."""
    import psutil  # where vLLM is, so is this

    return [
        one for one in psutil.Process().children(recursive=True) if "resource_tracker" not in " ".join(one.cmdline())
    ]


def is_alive(process: Any) -> bool:
    return bool(process.is_running() and process.status() != "zombie")


def kill(which: int) -> None:
    os.kill(processes()[which].pid, signal.SIGKILL)


@pytest.mark.parametrize("which", [0, -1], ids=["the scheduler's", "the worker's"])
def test_a_killed_process_ends_its_requests_and_comes_back(served: Served, which: int) -> None:
    ids = [served.submit(path, [5, 6, 7], max_tokens=100, ignore_eos=True) for path in ("full", "knowledge")]
    until(lambda: all(served.listener.tokens(id) for id in ids))
    kill(which)
    for id in ids:
        finish = served.finish(id)
        if finish.reason is FinishReason.LENGTH:  # it was quicker
            continue
        assert isinstance(finish.error, EngineUnhealthy)
        assert finish.error.retry_after_s
    until(lambda: not served.engine.status().is_healthy)
    with pytest.raises(EngineUnhealthy, match="being started again"):
        served.submit("full", [5])
    until(lambda: served.engine.status().is_healthy)
    assert len(served.answer("knowledge", [5, 6, 7], ignore_eos=True, max_tokens=4)) == 4
    assert served.engine.audit(60) == []


def test_a_stopped_process_is_ended_and_comes_back(served: Served) -> None:
    before = processes()
    served.engine._stall_s = 3.0
    for one in before:
        one.suspend()
    id = served.submit("full", [5, 6, 7], max_tokens=100, ignore_eos=True)
    assert isinstance(served.finish(id).error, EngineUnhealthy)
    served.engine._stall_s = START_S
    until(lambda: served.engine.status().is_healthy)
    assert len(served.answer("full", [5, 6, 7], ignore_eos=True, max_tokens=4)) == 4
    assert not any(is_alive(one) for one in before)


def test_stop_leaves_no_process_behind(served: Served) -> None:
    before = processes()
    assert before
    id = served.submit("full", [5, 6, 7], max_tokens=60, ignore_eos=True)
    served.engine.stop(60)
    assert served.finish(id).reason is FinishReason.LENGTH
    until(lambda: not any(is_alive(one) for one in before))
