"""`fenhe loadtest` becomes `python -m loadtest`, and says what is missing where its extra is not installed."""

import os
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
