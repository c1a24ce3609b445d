"""Servers of a comparison: where they run, and that nothing of them is left."""

import os
import sys
import time
from pathlib import Path

import pytest

from loadtest.comparison.servers import Place, ServerSpec, read_servers, started

FAKE = "tests.loadtest.fake_server"
PARENT = """
import os, subprocess, sys
port, noted, fake = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-m", fake, "well", f"port={port}", "seconds=100"])
open(noted, "w").write(f"{child.pid} {sorted(os.sched_getaffinity(0))}")
child.wait()
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    cores = sorted(os.sched_getaffinity(0))
    return Place(server_cores=(cores[0],), generator_cores=(cores[-1],), folder=tmp_path, student=tmp_path, gguf=None)


def test_server_runs_on_its_cores_and_leaves_no_child(place: Place, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), "{port}", str(noted), FAKE]
    spec = ServerSpec(about="x", role="peer", batches=True, command=command)
    with started("parent", spec, place) as server:
        child, _, cores = noted.read_text().partition(" ")
        assert cores == str(list(place.server_cores))
        assert server.resident_mib() > 1
        assert server.ready_s > 0
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the child lives on")


def test_bad_file_of_servers_is_named(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("[x]\nabout = 'y'\n")
    with pytest.raises(ValueError, match=r"more\.toml: .*role"):
        read_servers(tmp_path / "more.toml")


def test_a_command_without_a_student_is_filled(tmp_path: Path) -> None:
    place = Place(server_cores=(0,), generator_cores=(0,), folder=tmp_path, student=Path(), gguf=None)
    assert place.fill("simulate", ["--port", "{port}"], 80) == ["--port", "80"]
