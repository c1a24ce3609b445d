"""Students that commands are given by folder or by name."""

from pathlib import Path

import pytest

from models.building import default_student
from models.building.default_student import DEFAULT_MODEL
from models.student.manifest import write_manifest
from server.commands.cli import main
from server.commands.named_student import DEFAULT, folder_of
from tests.server.conftest import make_manifest


def test_default_student_has_the_name_of_its_model() -> None:
    assert DEFAULT == DEFAULT_MODEL


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(default_student, "find_student", lambda environ, say: tmp_path / "made")
    assert folder_of("somewhere") == Path("somewhere")
    assert folder_of(DEFAULT) == tmp_path / "made"
    Path(DEFAULT).mkdir()
    assert folder_of(DEFAULT) == Path(DEFAULT)


@pytest.mark.parametrize("arguments", [[], [DEFAULT]])
def test_inspect_shows_the_default_student(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path, make_manifest())
    monkeypatch.setattr(default_student, "find_student", lambda environ, say: tmp_path)
    assert main(["inspect", "--json", *arguments]) == 0
    assert '"tiny"' in capsys.readouterr().out
