"""The command line: errors are one line and status 2, versions and help work without a model."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError
from models.sources.source import open_source
from models.student.manifest import write_manifest
from server.commands.cli import COMMANDS, main
from server.context import Context
from tests.models.exit_files import write_tiny_exits
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, make_manifest, open_scripted

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`fenhe serve` sets up logging, SIGHUP and the heap for its process, which here is that of all tests."""
    monkeypatch.setattr("server.lifecycle.memory.share_one_heap", lambda environ: None)
    hangup = signal.getsignal(signal.SIGHUP) if hasattr(signal, "SIGHUP") else None
    names = (None, "uvicorn", "uvicorn.access")
    levels = {name: logging.getLogger(name).level for name in names}
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield
    if hangup is not None:
        signal.signal(signal.SIGHUP, hangup)
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def run(*arguments: str) -> int:
    """The exit status, whichever way the command ends."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("fenhe ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_listed_and_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert any(line.split()[:1] == [name] for line in capsys.readouterr().out.splitlines())
    assert run(name, "--help") == 0
    assert f"usage: fenhe {name} [-h] [--debug]" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["chat", "--help"], ["build", "--help"]])
def test_light_commands_load_no_model_code(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom server.commands.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('heavy:', *{'numpy', 'tokenizers', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve", "--nonsense", "1"], ["build"], ["bench"]])
def test_wrong_arguments_exit_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_serve_that_is_starting_is_not_ended_by_a_hangup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_all(*arguments: object) -> None:
        signal.raise_signal(signal.SIGHUP)
        raise ConfigError("got this far")

    monkeypatch.setattr("server.students.open_student.open_all", open_all)
    assert run("serve", "--port", "0", "--router-enabled", "false") == 2
    assert "SIGHUP ignored" in capsys.readouterr().err


def test_serve_shares_one_heap_before_threads_can_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it reads settings, and so before what needs numpy is imported."""

    def share(environ: object) -> None:
        raise ConfigError("got this far")

    monkeypatch.setattr("server.lifecycle.memory.share_one_heap", share)
    monkeypatch.setattr("server.lifecycle.settings_check.read_sound", None)
    assert run("serve", "--port", "0") == 2


def test_serve_reports_all_config_mistakes_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FENHE_GRACE_S", "soon")
    assert run("serve", "--port", "high", "--max-running", "0") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("--port", "--max-running", "FENHE_GRACE_S"):
        assert part in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "--prot", "8001"], "no option --prot; did you mean --port?"),
        (["serve", "--max-runing=1"], "no option --max-runing; did you mean --max-running?"),
        (["chat", "hello", "--api-kye", "x"], "no option --api-kye; did you mean --api-key?"),
        (["serve", "--colour-of-the-sky", "1"], "no option --colour-of-the-sky; see `fenhe serve --help`"),
        (["inspect", "a", "b"], "'b' is more than it takes; a text of several words needs quotes; see `fenhe inspect"),
        (["chat", "is", "it", "legal?"], "'it legal?' is more than it takes; a text of several words needs quotes"),
    ],
)
def test_unknown_option_is_answered_with_what_was_meant(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "server.commands.cli", "config", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_serve_help_explains_settings_by_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--help") == 0
    out = capsys.readouterr().out
    assert "[limits]:" in out
    assert "port to listen on; 0: any that is free (default 8000)" in out


def test_serve_misses_packages_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setattr("server.students.open_student.open_all", lambda *_: pytest.fail("loaded"))
    assert run("serve", "--port", "0", "--cache-url", "redis://localhost") == 2
    assert "fenhe[redis]" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["text", "json"])
def test_serve_says_where_it_listens_in_the_form_of_its_log(
    form: str, student: TinyStudent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(context: Context, listener: object, announce: Callable[[str], None]) -> int:
        announce("http://127.0.0.1:8000")
        return 0

    monkeypatch.setattr("server.serve.serve", serve)
    monkeypatch.setattr(
        "server.students.open_student.open_all", lambda *_: [open_scripted(student, make_engine(SCRIPT))]
    )
    assert run("serve", "--port", "0", "--log-format", form, "--router-enabled", "false") == 0
    (line,) = capsys.readouterr().out.splitlines()
    said = "fenhe serves tiny at http://127.0.0.1:8000/v1"
    if form == "text":
        assert line == said
    else:
        told = json.loads(line)
        assert (told["message"], told["level"]) == (said, "info")
        assert (told["url"], told["students"]) == ("http://127.0.0.1:8000/v1", ["tiny"])


def test_serve_names_a_folder_that_is_no_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--student", str(tmp_path), "--port", "0") == 2
    assert "fenhe build" in capsys.readouterr().err


def test_inspect_prints_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path, make_manifest())
    assert run("inspect", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="fenhe build"):
        run("inspect", str(tmp_path), "--json", "--debug")


def test_chat_without_a_server_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("chat", "--url", "http://127.0.0.1:9", "hello") == 2
    assert "fenhe serve" in capsys.readouterr().err


def test_chat_streams_and_sums_up(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("chat", "--url", served.url, "--model", "tiny:shallow", "hello") == 0
    out = capsys.readouterr().out
    assert out.startswith("Hello, world!\n[path shallow, 4 tokens, first after ")


def test_chat_shows_what_the_server_refused(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("chat", "--url", f"{served.url}/v1/", "--model", "nobody", "hello") == 2
    assert "`nobody` does not exist" in capsys.readouterr().err


def test_build_with_exits_takes_the_cut_from_them(
    tiny_source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny_source("llama"), tmp_path / "out"
    exits = write_tiny_exits(tmp_path / "exits.safetensors", open_source(folder))
    command = ["build", str(folder), "--out", str(out), "--precision", "fp32", "--exits", str(exits)]
    assert main([*command, "--modules", "knowledge:4"]) == 2
    assert "leave --modules or --exits out" in capsys.readouterr().err
    assert main(command) == 0
    assert "not trained" not in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0
    assert "math_exit" in capsys.readouterr().out


def test_build_without_exits_says_what_to_expect(
    tiny_source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", str(tiny_source("llama")), "--out", str(tmp_path / "out"), "--precision", "fp32"]
    assert main([*command, "--modules", "knowledge:1,reasoning:2,adapter:1"]) == 0
    told = capsys.readouterr().out
    assert "the exits of knowledge, reasoning are not trained" in told
