"""The soak itself: a small one over a real server is clean, and it sees what is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtest.redis_process import BINARY
from loadtest.soak import Memory

ROOT = Path(__file__).parents[2]


def test_soak_of_a_tiny_student_ends_clean(student: Path, tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    command = [sys.executable, "-m", "loadtest.soak", "--requests", "400", "--clients", "8", "--student", str(student)]
    run = subprocess.run(
        [*command, "--json", str(report_file)], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert report_file.exists(), run.stdout + run.stderr
    report: dict[str, Any] = json.loads(report_file.read_text())
    problems = [one for one in report["problems"] if "memory" not in one]  # so short a run is all warm-up
    assert problems == []
    assert report["requests"] >= 400
    assert {"hit", "miss", "join", "bypass"} <= set(report["cache"])
    assert report["redis"] is (BINARY is not None)


def test_memory_growth_is_taken_after_the_warm_up() -> None:
    assert Memory(samples=[10] * 30 + [100] * 70).growth() == 0.0
    grown = Memory(samples=[100] * 30 + [100 + step for step in range(70)])
    assert 0.55 < grown.growth() < 0.65
