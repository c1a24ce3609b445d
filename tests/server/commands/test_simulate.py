"""`fenhe simulate`: the server on a student without a model, at set times, with set faults."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.commands.cli import main


def serve(*options: str) -> "subprocess.Popen[str]":
    command = [str(Path(sys.executable).with_name("fenhe")), "simulate", "--port", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture
def url() -> Iterator[str]:
    options = ("--first-token-ms", "300", "--inter-token-ms", "20", "--fail-share", "0.5")
    with serve(*options) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://[\d.:]+", process.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            process.terminate()


def stream(url: str, number: int) -> tuple[float, list[str]]:
    """Seconds to the first content, and the data lines."""
    body = {"model": "simulated", "messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 6}
    begun_s = time.perf_counter()
    first_s, lines = 0.0, []
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=30) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: "):
                lines.append(line[6:])
            if not first_s and '"content":"w' in line:
                first_s = time.perf_counter() - begun_s
    return first_s, lines


def test_answers_come_at_set_times_and_half_of_them_break(url: str) -> None:
    num_whole = 0
    for number in range(16):
        first_s, lines = stream(url, number)
        is_whole = len(lines) > 6 and not any("error" in json.loads(line) for line in lines[:-1])
        num_whole += is_whole
        assert first_s >= 0.3 or not is_whole
    assert 2 < num_whole < 14


def test_impossible_times_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--first-token-ms", "-1", "--fail-share", "2", "--max-running", "0"]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in ("--first-token-ms", "--fail-share", "--max-running"))
