"""A full disk: the error names the file, and nothing is left."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from models.building.build import build_student
from models.distill.data.preparation import write_rows
from models.distill.run.checkpoint import save_checkpoint
from models.file_writing import naming, write_whole
from models.graphs.onnx_graph import WeightsFile
from models.sources.source import open_source
from models.student.manifest import write_manifest
from models.student.speeds import SpeedFile, write_speeds
from tests.models.exit_files import write_tiny_exits
from tests.server.conftest import make_manifest


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files can be made; the first byte finds no space."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_bytes(file: Path, content: bytes) -> None:
        file.touch()
        refuse()

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(WeightsFile, "_write", refuse)
    monkeypatch.setattr(os, "fsync", refuse)


def test_write_whole_takes_the_place_of_the_file(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        write_whole(tmp_path / "a.json", content)
        assert (tmp_path / "a.json").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", lambda folder: write_whole(folder / "a.json", b"new")),
        ("manifest.json", lambda folder: write_manifest(folder, make_manifest())),
        ("speeds.json", lambda folder: write_speeds(folder, SpeedFile(machine="this", variants={}))),
        ("rows.jsonl", lambda folder: write_rows(folder / "rows.jsonl", [])),
        ("step-00000001.pt", lambda folder: save_checkpoint(folder, 1, {"step": 1})),
    ],
)
def test_full_disk_keeps_the_file_and_names_it(tmp_path: Path, full_disk: None, name: str, write: Any) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match=f"No space left on device while writing {tmp_path / name}; .*FENHE_CACHE"):
        write(tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "old")]


def test_full_disk_keeps_the_exits_that_were_there(tiny_source: Any, tmp_path: Path, full_disk: None) -> None:
    folder, source = tmp_path / "exits", open_source(tiny_source("llama"))
    folder.mkdir()
    file = folder / "a.safetensors"
    file.write_text("old")
    with pytest.raises(OSError, match=f"No space left on device while writing {file}; "):
        write_tiny_exits(file, source)
    assert [(one.name, one.read_text()) for one in folder.iterdir()] == [(file.name, "old")]


def test_build_on_a_full_disk_names_the_student_and_leaves_nothing(
    tiny_source: Any, tmp_path: Path, full_disk: None
) -> None:
    out = tmp_path / "students" / "tiny"
    with pytest.raises(OSError, match=f"No space left on device while writing {out}; .*--out"):
        build_student(tiny_source("llama"), out)
    assert list(out.parent.iterdir()) == []


def test_naming_names_once(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="full while writing") as caught,
        naming(tmp_path / "outer"),
        naming(tmp_path / "inner"),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert str(tmp_path / "inner") in str(caught.value)
    assert "outer" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "none"), PermissionError(errno.EACCES, "no", "/a/b")]
)
def test_naming_leaves_errors_of_other_files_alone(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)) as caught, naming(tmp_path / "out"):
        raise error
    assert caught.value is error
