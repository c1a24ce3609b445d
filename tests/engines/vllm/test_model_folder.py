"""What vLLM is given for a model lies in the same place for the same content: it finds what it compiled by that."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.config import EngineConfig
from engines.vllm.build import model_folder
from engines.vllm.form import ServedForm
from engines.vllm.options import student_form
from models.student.folder import Student
from tests.engines.vllm.test_export import build


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FENHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vllm"


@pytest.fixture
def student(tiny_source: Any, tmp_path: Path) -> Student:
    build(tiny_source("llama", intermediate_size=256), tmp_path / "student")
    return Student.open(tmp_path / "student")


@pytest.fixture
def form(student: Student) -> ServedForm:
    return student_form(student, EngineConfig())


def test_content_decides_on_the_place(student: Student, form: ServedForm, cache: Path) -> None:
    folder = model_folder(student, form)
    assert folder.parent == cache
    assert model_folder(student, form) == folder
    other = msgspec.structs.replace(form, default_path="slim")
    assert model_folder(student, other) != folder
    assert len(list(cache.iterdir())) == 2  # nothing half made is left


def test_changed_files_are_written_anew(student: Student, form: ServedForm, cache: Path) -> None:
    folder = model_folder(student, form)
    kept = (folder / "config.json").read_bytes()
    (folder / "config.json").write_text("{}")
    assert model_folder(student, form) == folder
    assert (folder / "config.json").read_bytes() == kept


def test_without_a_cache_it_is_made_for_this_process(student: Student, form: ServedForm, cache: Path) -> None:
    cache.parent.write_text("a file where the cache should be")
    folder = model_folder(student, form)
    assert (folder / "config.json").is_file()
    assert cache.parent not in folder.parents
