"""The default student is pulled and built once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import models.default_student
from models.default_student import find_student
from models.manifest import write_manifest
from tests.server.conftest import make_manifest, make_tokenizer


def test_default_student_is_pulled_and_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def cache_folder(environ: Mapping[str, str]) -> Path:
        return Path(environ["FENHE_CACHE"])

    def pull(name: str, cache: Path, **options: Any) -> Path:
        calls.append(f"pull {name}")
        return cache / "model.gguf"

    def build_student(source: Path, out: Path, **options: Any) -> None:
        calls.append(f"build {source.name}")
        out.mkdir(parents=True)
        write_manifest(out, make_manifest())
        make_tokenizer().save(out)

    monkeypatch.setattr(models.default_student, "cache_folder", cache_folder)
    monkeypatch.setattr(models.default_student, "pull", pull)
    monkeypatch.setattr(models.default_student, "build_student", build_student)
    lines: list[str] = []
    environ = {"FENHE_CACHE": str(tmp_path)}
    folder = find_student(environ, lines.append)
    assert find_student(environ, lines.append) == folder
    assert (folder / "manifest.json").exists()
    assert calls == ["pull smollm2-135m", "build model.gguf"]
    assert [line.partition(" ")[0] for line in lines] == ["no", "building"]
    (folder / "manifest.json").write_text("{}")
    find_student(environ, lines.append)
    assert calls[2:] == ["pull smollm2-135m", "build model.gguf"]
    assert "again" in lines[2]
