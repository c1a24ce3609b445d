"""`fenhe loadtest` becomes `python -m loadtest`, and says what is missing where its extra is not installed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

import pytest

from server.commands import loadtest
from server.commands.cli import main


def test_loadtest_becomes_a_process_that_knows_http_only(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Sequence[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: became.append((program, *arguments)))
    main(["loadtest", "run", "--url", "http://127.0.0.1:9"])
    python = sys.executable
    assert became == [(python, python, "-m", "loadtest", "run", "--url", "http://127.0.0.1:9")]


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def find(package: str) -> ModuleSpec | None:
        return None if package == "locust" else ModuleSpec(package, None)

    monkeypatch.setattr(loadtest, "find_spec", find)
    assert main(["loadtest", "run"]) == 2
    assert "needs locust; pip install 'fenhe[loadtest]'" in capsys.readouterr().err


def test_help_lists_the_commands_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Sequence[str]] = []
    monkeypatch.setattr(loadtest, "find_spec", lambda package: None)
    monkeypatch.setattr(os, "execv", lambda program, arguments: became.append(arguments))
    main(["loadtest", "--help"])
    main(["loadtest"])
    assert [arguments[3:] for arguments in became] == [["--help"], []]


def test_help_needs_none_of_the_extras_packages() -> None:
    """In a process where importing one of them fails."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({loadtest.NEEDED}))\n"
        "from loadtest.__main__ import main; main(['--help'])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "put load on a running server" in found.stdout
