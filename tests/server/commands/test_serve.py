"""`fenhe serve MODEL`: what the command line makes of it, and a model that is served when its file is gone."""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.commands.cli import main
from server.commands.config import check
from server.commands.serve import add_arguments, draft_settings

ROOT = Path(__file__).parents[3]
TABLES = '[[student]]\nfolder = "one"\n[[student]]\nfolder = "two"\n'


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FENHE_") and name != "FENHE_CACHE"]:
        monkeypatch.delenv(name)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("arguments", [["a.gguf"], ["--student", "a.gguf"], ["--port", "1", "a.gguf"]])
def test_model_may_stand_alone_or_behind_its_option(arguments: list[str]) -> None:
    config, problems = draft_settings(parsed(*arguments))
    assert problems == []
    assert [(one.folder, one.name) for one in config.student] == [(Path("a.gguf"), None)]


def test_name_is_that_of_the_only_student(tmp_path: Path) -> None:
    config, problems = draft_settings(parsed("a.gguf", "--name", "mine"))
    assert (problems, config.student[0].name) == ([], "mine")
    config, problems = draft_settings(parsed("--name", "mine"))
    assert (problems, config.student[0].folder, config.student[0].name) == ([], None, "mine")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.gguf", "--student", "b"], "--student and MODEL: two models"),
        (["--name", "auto"], "--name: a student cannot be called 'auto'"),
        (["--name", "org/x"], "--name: a student cannot be called 'org/x'"),
        (["--name", "x", "--config", "tables.toml"], "--name: there are 2 students"),
    ],
)
def test_contradictions_are_told(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tables.toml").write_text(TABLES)
    _, problems = draft_settings(parsed(*arguments))
    assert [problem.said.startswith(said) for problem in problems] == [True]


def test_model_of_the_command_line_beats_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "fenhe.toml").write_text(TABLES)
    config, problems = draft_settings(parsed("a.gguf", "--config", str(tmp_path / "fenhe.toml")))
    assert (problems, len(config.student), config.student[0].folder) == ([], 1, Path("a.gguf"))


@pytest.fixture
def file(tiny_source: Any, tiny_gguf: Any) -> Path:
    found: Path = tiny_gguf(tiny_source("llama"), quantisation="Q4_0")
    return found


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK" + bytes(1000)])
def test_file_that_is_no_model_ends_the_command_in_one_line(tmp_path: Path, content: bytes) -> None:
    """In a process of its own: the command sets up logging and signals."""
    (tmp_path / "a.gguf").write_bytes(content)
    environ = {**os.environ, "FENHE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "server.commands.cli", "serve", str(tmp_path / "a.gguf"), "--port", "0"]
    command += ["--router-enabled", "false", "--precision", "w8a8"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fenhe: ")]
    assert str(tmp_path / "a.gguf") in line


class Server:
    """`fenhe serve` in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.told: list[str] = []
        assert process.stdout is not None
        assert process.stderr is not None
        self._reader = threading.Thread(target=lambda: self.told.extend(process.stderr or ()))
        self._reader.start()
        line = process.stdout.readline()
        found = re.search(r"fenhe serves (.+) at (http://[\d.:]+)", line)
        if found is None:
            self.end()
            raise AssertionError(self.told)
        self.name, self.url = found[1], found[2]

    def answer(self) -> str:
        body = {"model": self.name, "prompt": "the fox", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as reply:
            text: str = json.load(reply)["choices"][0]["text"]
        return text

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._reader.join(60)


@pytest.fixture
def serve(tmp_path: Path, operators_folder: Path) -> Iterator[Callable[..., Server]]:
    started: list[subprocess.Popen[str]] = []
    environ = {**os.environ, "FENHE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def serve(*arguments: str) -> Server:
        command = [sys.executable, "-m", "server.commands.cli", "serve", *arguments, "--port", "0"]
        command += ["--router-enabled", "false", "--cache-enabled", "false", "--native-folder", str(operators_folder)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, cwd=tmp_path
        )
        started.append(process)
        return Server(process)

    yield serve
    for process in started:
        process.kill()
        process.communicate()


def test_model_file_is_built_served_and_found_again(file: Path, serve: Callable[..., Server]) -> None:
    """With stock operators, which need no compiler."""
    server = serve(str(file), "--precision", "w8a8")
    assert server.name == file.stem
    first = server.answer()
    os.truncate(file, 1000)
    assert server.answer() == first
    server.end()
    assert any("building a student from" in line for line in server.told)
    assert any(" %, layer " in line for line in server.told)


def test_repeated_start_builds_nothing(file: Path, serve: Callable[..., Server]) -> None:
    arguments = (str(file), "--precision", "w8a8", "--name", "mine")
    first = serve(*arguments)
    answer = first.answer()
    first.end()
    second = serve(*arguments)
    assert (second.name, second.answer()) == ("mine", answer)
    second.end()
    assert not any("building" in line for line in second.told)


def test_check_of_a_settings_file_takes_models_too(file: Path, tmp_path: Path) -> None:
    settings = tmp_path / "fenhe.toml"
    settings.write_text(f'[[student]]\nfolder = "{file}"\n')
    assert f"students: {file}" in check(settings, {})
    os.truncate(file, 3000)
    with pytest.raises(Exception, match=rf"{file} is damaged or cut short"):
        check(settings, {})


def test_serve_help_names_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "a GGUF file or Hugging Face folder, which is built into the cache first" in " ".join(
        capsys.readouterr().out.split()
    )
