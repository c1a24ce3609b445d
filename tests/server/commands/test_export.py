"""`fenhe export` as it is called."""

from pathlib import Path
from typing import Any

import pytest

from models.building.build import build_student
from server.commands.cli import main

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.mark.parametrize("options", [(), ("--format", "hf")])
def test_export_writes_the_folder(
    tiny_source: Any, tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    student, out = tmp_path / "student", tmp_path / "out"
    build_student(tiny_source("llama"), student, precisions=("fp32",))
    assert main(["export", str(student), *options, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == FILES


def test_export_to_a_folder_that_is_there_is_one_line(
    tiny_source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    assert main(["export", str(tmp_path / "student"), "--out", str(tmp_path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fenhe: ")]
    assert "in the way" in line


def test_export_knows_no_other_format(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), "--format", "gguf", "--out", str(tmp_path / "out")])
