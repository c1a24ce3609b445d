"""Memory goes back while the server is idle: when, how often, and not while anything is being answered."""

import asyncio
import ctypes
import gc
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest

from server.context import Context, make_context
from server.lifecycle import memory
from server.lifecycle.memory import TRIM_AT, IdleMemory, anonymous_bytes, share_one_heap, trim
from server.serve import Server
from server.settings.reading import draft_config
from tests.server.conftest import SCRIPT, make_engine, make_student, open_scripted


class Machine:
    """A system whose C library gives back what is `freed`."""

    def __init__(self) -> None:
        self.in_use, self.freed = 100, 0
        self.is_idle = True
        self.calls: Counter[str] = Counter()
        self.memory = IdleMemory(
            is_idle=lambda: self.is_idle,
            measure=lambda: self.in_use + self.freed,
            collect=lambda: self.calls.update(["collect"]),
            freeze=lambda: self.calls.update(["freeze"]),
            trim=self._trim,
        )

    def _trim(self) -> None:
        self.calls["trim"] += 1
        self.freed = 0

    async def look(self, times: int) -> None:
        for _ in range(times):
            await self.memory.look()


async def test_memory_goes_back_twice_in_an_idle_time() -> None:
    machine = Machine()
    machine.freed = 50
    await machine.look(TRIM_AT[0] - 1)
    assert machine.calls["trim"] == 0
    await machine.look(1)
    assert machine.calls == {"collect": 1, "trim": 1, "freeze": 1}
    assert machine.freed == 0
    await machine.look(50)
    assert machine.calls == {"collect": 2, "trim": 2, "freeze": 1}


async def test_memory_stays_while_something_is_answered() -> None:
    machine = Machine()
    await machine.look(TRIM_AT[0] - 1)
    machine.is_idle = False
    await machine.look(50)
    assert not machine.calls
    machine.is_idle = True
    await machine.look(TRIM_AT[0])
    assert machine.calls["trim"] == 1


async def test_memory_that_grows_without_requests_goes_back_too() -> None:
    machine = Machine()
    await machine.look(50)
    machine.freed = 1
    await machine.look(50)
    assert machine.calls["trim"] == 2
    machine.freed = 50
    await machine.look(TRIM_AT[0])
    assert machine.calls["trim"] == 3
    assert machine.freed == 0


async def test_memory_that_is_in_use_is_not_asked_for_again() -> None:
    machine = Machine()
    await machine.look(50)
    machine.in_use = 200
    await machine.look(50)
    assert machine.calls["trim"] == 4
    await machine.look(50)
    assert machine.calls["trim"] == 4


async def test_looking_ends_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATM", Path("/nowhere"))
    assert anonymous_bytes() is None
    await IdleMemory(is_idle=lambda: True).run()


def test_trim_calls_the_library_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Mock()
    monkeypatch.setattr(ctypes, "CDLL", Mock(return_value=library))
    trim()
    library.malloc_trim.assert_called_once_with(0)
    monkeypatch.setattr(ctypes, "CDLL", Mock(return_value=Mock(spec=[])))  # musl
    trim()


THREADS_THAT_WORKED = """
import os, threading
from server.lifecycle.memory import anonymous_bytes, share_one_heap, trim
assert share_one_heap(os.environ)
bytes(31 << 20)  # from now on glibc maps no memory of less, and keeps twice as much at the end of a heap
before = anonymous_bytes()
holding, measured = threading.Barrier(5), threading.Barrier(5)
def work():
    taken = [b"x" * 100_000 for _ in range(200)]
    holding.wait()
    measured.wait()
    taken.clear()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
holding.wait()
during = anonymous_bytes()
measured.wait()
for thread in threads: thread.join()
trim()
print((during - before) >> 20, (anonymous_bytes() - before) >> 20)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
def test_what_threads_have_freed_goes_back() -> None:
    """In a process of its own: it is for the whole process."""
    environ = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    program = [sys.executable, "-c", THREADS_THAT_WORKED]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=environ)
    taken_mib, left_mib = map(int, done.stdout.split())
    assert taken_mib > 60
    assert left_mib < 10


@pytest.mark.parametrize(("name", "value"), [("MALLOC_ARENA_MAX", "4"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=4")])
def test_heaps_stay_as_the_operator_set_them(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    library = Mock()
    monkeypatch.setattr(ctypes, "CDLL", Mock(return_value=library))
    assert not share_one_heap({name: value})
    library.mallopt.assert_not_called()
    assert share_one_heap({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
    library.mallopt.assert_called_once_with(-8, 1)


def test_systems_without_heaps_of_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Mock(return_value=Mock(spec=[])))  # musl
    assert not share_one_heap({})


@pytest.mark.skipif(anonymous_bytes() is None, reason="needs /proc")
def test_memory_in_use_is_measured() -> None:
    before = anonymous_bytes()
    taken = bytearray(b"x") * (64 << 20)
    during = anonymous_bytes()
    assert before is not None
    assert during is not None
    assert during - before > 0.9 * len(taken)


def test_removed_student_is_collected_although_it_was_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("unfreeze", "collect"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    memory.give_memory_back()
    assert calls == ["unfreeze", "collect"]


@pytest.fixture
def context() -> Context:
    config, _ = draft_config({"port": "0"}, {"HOME": "/nowhere"}, None)
    return make_context(config, [open_scripted(make_student(Path("/nowhere")), make_engine(SCRIPT))])


async def test_server_gives_memory_back_while_it_serves(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    begun: list[IdleMemory] = []
    ended = asyncio.Event()

    async def run(idle_memory: IdleMemory) -> None:
        begun.append(idle_memory)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(IdleMemory, "run", run)
    monkeypatch.setattr(Server, "url", "http://127.0.0.1:1")
    server = Server(context, announce=lambda url: None)
    serving = asyncio.create_task(server.main_loop())
    while not begun:
        await asyncio.sleep(0)
    assert begun[0].is_idle()
    context.drain.open_keys.add("a request")
    assert not begun[0].is_idle()
    server.should_exit = True
    await serving
    await ended.wait()
