"""What README tells a newcomer to type works, on the real student."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.building.build import build_student

ROOT = Path(__file__).parents[1]
WIDTHS = ROOT / "models" / "data" / "smollm2-135m.widths.safetensors"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server_url(default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`fenhe serve` of the default student on a free port, with stock operators: no compiler is needed."""
    student = tmp_path_factory.mktemp("readme") / "student"
    build_student(default_gguf, student, name="smollm2-135m", precisions=("w8a8",), widths=WIDTHS)
    command = [sys.executable, "-m", "server.commands.cli", "serve", "--student", str(student), "--port", "0"]
    command += ["--precision", "w8a8"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://[\d.:]+", process.stdout.readline())
            assert found is not None, "the server did not say where it listens"
            yield found[0]
        finally:
            process.terminate()
        assert process.wait(30) == 0


def test_readme_client_example_streams_an_answer(server_url: str) -> None:
    (example,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert "http://127.0.0.1:8000" in example
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        # Greedy: how long a sampled answer is differs.
        example = example.replace("http://127.0.0.1:8000", server_url).replace(
            "stream=True", "stream=True, temperature=0"
        )
        exec(compile(example, "README.md", "exec"), {})
    assert len(printed.getvalue().split()) > 20


def test_readme_model_ids_are_served(server_url: str) -> None:
    with urllib.request.urlopen(f"{server_url}/v1/models") as reply:
        served = {model["id"] for model in json.load(reply)["data"]}
    (table,) = re.findall(r"\| model id \| path \|\n\|[-|]+\|\n((?:\|.+\n)+)", README)
    named = re.findall(r"`([\w:.-]+)`", table)
    assert {"auto", "smollm2-135m"} <= set(named) <= served


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) < 120
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
