"""The digest of a model's files, what is remembered of it, and files that change."""

import os
from pathlib import Path

import pytest

import models.building.source_content
from models.building.source_content import ContentDigests, check_unchanged, files_of, states_of
from models.checksums import sha256_of
from models.errors import WeightsError
from tests.disk_faults import refuse_writes

LONG_AGO_S = 1_000_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "chat_template.jinja", "README.md", "pytorch_model.bin"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContentDigests:
    """No file is too young to be remembered: its times are those of the system, which no test can set back."""
    monkeypatch.setattr(models.building.source_content, "SETTLED_NS", -(10**18))
    return ContentDigests(tmp_path / "memory")


def test_files_of_a_folder_are_those_that_models_are_read_from(folder: Path, file: Path) -> None:
    assert [one.name for one in files_of(folder)] == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
    ]
    assert files_of(file) == (file,)


def test_digest_of_a_file_is_that_of_its_content(file: Path, digests: ContentDigests, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes())
    assert digests.of(file) == digests.of(other) == sha256_of([file])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_digest_of_a_folder_follows_every_file(folder: Path, digests: ContentDigests, name: str) -> None:
    before = digests.of(folder)
    (folder / "pytorch_model.bin").write_text("changed")
    assert digests.of(folder) == before
    (folder / name).write_text("changed")
    assert digests.of(folder) != before


def test_digest_is_remembered_until_the_file_changes(
    file: Path, tmp_path: Path, digests: ContentDigests, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not digests.is_remembered(file)
    first = digests.of(file)
    assert digests.is_remembered(file)
    monkeypatch.setattr(models.building.source_content, "sha256_of", lambda files: pytest.fail("read again"))
    assert ContentDigests(tmp_path / "memory").of(file) == first
    monkeypatch.undo()
    file.write_bytes(b"changed")
    os.utime(file, (LONG_AGO_S, LONG_AGO_S))
    assert not digests.is_remembered(file)
    assert digests.of(file) == sha256_of([file])


def test_young_file_is_not_remembered(file: Path, tmp_path: Path) -> None:
    digests = ContentDigests(tmp_path / "memory")
    digests.of(file)
    assert not digests.is_remembered(file)


def test_memory_that_is_damaged_or_cannot_be_written_is_done_without(
    file: Path, tmp_path: Path, digests: ContentDigests
) -> None:
    with refuse_writes(tmp_path / "memory"):
        assert digests.of(file) == sha256_of([file])
    assert digests.of(file) == sha256_of([file])
    (note,) = (tmp_path / "memory").iterdir()
    note.write_text("{")
    assert digests.of(file) == sha256_of([file])


def test_source_that_stays_as_it_is_passes(file: Path, folder: Path) -> None:
    for source in (file, folder):
        check_unchanged(source, states_of(source))


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)


@pytest.mark.parametrize("change", [lambda file: file.write_bytes(b"x"), replace, Path.unlink])
def test_source_that_changes_is_named(file: Path, folder: Path, change: object) -> None:
    assert callable(change)
    for source, changed in ((file, file), (folder, folder / "config.json")):
        before = states_of(source)
        change(changed)
        with pytest.raises(WeightsError, match=rf"{changed} changed while it was read"):
            check_unchanged(source, before)
