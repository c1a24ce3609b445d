from pathlib import Path

import pytest

from server.commands.cli import main


def test_pull_builds_the_default_student_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "hf:some/model", "--build"]) == 2
    assert "`fenhe build` what was pulled" in capsys.readouterr().err


def test_pull_builds_the_default_student_where_serve_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("models.building.default_student.find_student", lambda environ, report: tmp_path / "student")
    assert main(["pull", "smollm2-135m", "--build"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "student")
