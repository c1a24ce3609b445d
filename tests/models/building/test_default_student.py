"""The default student is pulled and built once, with the exits that are in the package."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

import models.building.build
import models.building.default_student
from models.building.default_student import find_student
from models.building.recommended_sampling import BY_SHA256
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.sampling import RecommendedSampling
from models.sources.fetch import WHEELS
from models.sources.source import open_source
from models.student.manifest import CheapHead, Measured, PathFigures, Quality, read_manifest, write_manifest
from tests.disk_faults import refuse_writes
from tests.file_entries import entries_of
from tests.models.exit_files import write_tiny_exits
from tests.server.conftest import make_manifest, make_tokenizer

WEIGHTS = bytes(100)
"""Of a precision that is not the one served."""


@dataclass(slots=True)
class Cache:
    """A cache into which students are `pulled` and `built`, and what was reported of it."""

    folder: Path
    calls: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    given: list[Measured | None] = field(default_factory=list)

    def find(self) -> Path:
        return find_student({"FENHE_CACHE": str(self.folder)}, self.lines.append)

    def pull(self, name: str, cache: Path, **options: Any) -> Path:
        self.calls.append(f"pull {name}")
        return cache / "model.gguf"

    def build(
        self,
        source: Path,
        out: Path,
        *,
        exits: Path | None,
        head: Path | None,
        widths: Path | None,
        measured: Measured | None,
        **options: Any,
    ) -> None:
        parts = [part.name for part in (exits, head, widths) if part]
        self.calls.append(" with ".join(["build " + source.name, *parts]))
        self.given.append(measured)
        out.mkdir(parents=True)
        digest = sha256_of([exits]) if exits else ""
        made = None if head is None else CheapHead(rank=4, num_frequent=2, num_candidates=2, sha256=sha256_of([head]))
        make_tokenizer().save(out)
        (out / "w8a8.weights").write_bytes(WEIGHTS)
        files = entries_of(out)
        manifest = msgspec.structs.replace(make_manifest(), exits_sha256=digest, cheap_head=made, files=files)
        manifest = msgspec.structs.replace(manifest, widths_sha256=sha256_of([widths]) if widths else "")
        write_manifest(out, manifest)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the package keeps its data; empty."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(models.building.default_student, "PACKAGED", folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    cache = Cache(tmp_path / "cache")

    def cache_folder(environ: Mapping[str, str]) -> Path:
        return Path(environ["FENHE_CACHE"])

    monkeypatch.setattr(models.building.default_student, "cache_folder", cache_folder)
    monkeypatch.setattr(models.building.default_student, "pull", cache.pull)
    monkeypatch.setattr(models.building.build, "build_student", cache.build)
    return cache


def test_default_student_is_pulled_and_built_once(cache: Cache) -> None:
    folder = cache.find()
    assert cache.find() == folder
    assert (folder / "manifest.json").exists()
    assert cache.calls == ["pull smollm2-135m", "build model.gguf"]
    assert [line.partition(" ")[0] for line in cache.lines] == ["no", "building"]
    (folder / "manifest.json").write_text("{}")
    cache.find()
    assert cache.calls[2:] == ["pull smollm2-135m", "build model.gguf"]
    assert "again" in cache.lines[2]


@pytest.mark.parametrize("part", ["exits", "head", "widths"])
def test_default_student_with_other_parts_than_the_packages_is_built_again(
    cache: Cache, package: Path, part: str
) -> None:
    cache.find()
    file = package / f"smollm2-135m.{part}.safetensors"
    for content in ("first", "second"):
        file.write_text(content)
        del cache.lines[:], cache.calls[:]
        cache.find()
        assert cache.calls == ["pull smollm2-135m", f"build model.gguf with {file.name}"]
        assert "other exits, widths or another head than this version of fenhe" in cache.lines[0]
        del cache.lines[:], cache.calls[:]
        cache.find()
        assert (cache.lines, cache.calls) == ([], [])
    file.unlink()
    cache.find()
    assert cache.calls == ["pull smollm2-135m", "build model.gguf"]


def test_default_student_gets_the_packages_figures(cache: Cache, package: Path) -> None:
    figures = Measured(
        exits_sha256="ab",
        quality=(Quality(path="full", variant="w8a8", cross_entropy=2.2, text="eval", num_tokens=9),),
    )
    (package / "smollm2-135m.quality.json").write_bytes(msgspec.json.encode(figures))
    cache.find()
    assert cache.given == [figures]


def figures_of(exits_sha256: str, cross_entropy: float) -> bytes:
    quality = (Quality(path="full", variant="w8a8", cross_entropy=cross_entropy, text="eval", num_tokens=9),)
    return msgspec.json.encode(Measured(exits_sha256=exits_sha256, quality=quality))


def test_default_student_takes_over_newer_figures_of_the_same_exits_once(cache: Cache, package: Path) -> None:
    file = package / "smollm2-135m.quality.json"

    def found() -> list[float]:
        return [one.cross_entropy for one in read_manifest(cache.find()).quality]

    assert found() == [2.3]
    file.write_bytes(figures_of("", 2.2))
    assert found() == [2.2]
    folder = cache.find()
    own = msgspec.structs.replace(read_manifest(folder).quality[0], cross_entropy=1.1)
    write_manifest(folder, msgspec.structs.replace(read_manifest(folder), quality=(own,)))
    assert found() == [1.1]
    file.write_bytes(figures_of("other exits", 3.3))
    assert found() == [1.1]
    file.write_bytes(figures_of("", 4.4))
    assert found() == [4.4]
    assert len(cache.calls) == 2


def test_default_student_of_before_gets_its_recommended_sampling_without_a_build(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache.find()
    assert read_manifest(folder).sampling is None
    card = RecommendedSampling(temperature=0.2, top_p=0.9)
    monkeypatch.setitem(BY_SHA256, read_manifest(folder).source_sha256, card)
    del cache.lines[:], cache.calls[:]
    assert read_manifest(cache.find()).sampling == card
    assert (len(cache.lines), cache.calls) == (1, [])
    own = RecommendedSampling(temperature=1.0)
    write_manifest(folder, msgspec.structs.replace(read_manifest(folder), sampling=own))
    assert read_manifest(cache.find()).sampling == own
    assert (len(cache.lines), cache.calls) == (1, [])


def test_default_student_of_before_is_served_without_sampling_from_a_read_only_cache(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache.find()
    monkeypatch.setitem(BY_SHA256, read_manifest(folder).source_sha256, RecommendedSampling(temperature=0.2))
    del cache.calls[:]
    for unwritable in (cache.folder, folder):  # in the second case the lock beside it can be taken
        with refuse_writes(unwritable):
            assert cache.find() == folder
        assert str(folder) in cache.lines[-1]
        assert "Read-only" in cache.lines[-1]
    assert cache.calls == []
    assert read_manifest(folder).sampling is None


def test_default_students_model_card_is_known_by_its_weights() -> None:
    assert BY_SHA256[WHEELS["smollm2-135m"].member_sha256] == RecommendedSampling(temperature=0.2, top_p=0.9)


def test_default_student_takes_over_figures_of_the_heads_it_has(cache: Cache, package: Path) -> None:
    """Those of another cheap head say nothing of a student without one."""
    cache.find()
    both = tuple(
        PathFigures(path="full", head=head, task="math", variant="w8a8", language="en", kl=0.1)
        for head in ("exact", "cheap")
    )
    measured = Measured(exits_sha256="", figures=both, cheap_head_sha256="ab")
    (package / "smollm2-135m.quality.json").write_bytes(msgspec.json.encode(measured))
    assert read_manifest(cache.find()).figures == both[:1]
    assert measured.figures_with("ab") == both


@pytest.mark.parametrize("error", [ConfigError("no network"), WeightsError("damaged on the way")])
def test_default_student_of_before_is_served_when_a_new_one_cannot_be_had(
    cache: Cache, package: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = cache.find()
    (package / "smollm2-135m.exits.safetensors").write_text("newer")

    def pull(*_: Any, **__: Any) -> Path:
        raise error

    monkeypatch.setattr(models.building.default_student, "pull", pull)
    del cache.lines[:]
    assert cache.find() == folder
    assert read_manifest(folder).exits_sha256 == ""
    assert f"cannot be built: {error}" in cache.lines[-1]
    (folder / "manifest.json").unlink()
    with pytest.raises(type(error), match=str(error)):
        cache.find()


def test_default_student_left_half_built_by_a_kill_is_built_again(cache: Cache) -> None:
    (cache.folder / "students" / "smollm2-135m.new" / "graphs").mkdir(parents=True)
    assert (cache.find() / "manifest.json").exists()
    assert not (cache.folder / "students" / "smollm2-135m.new").exists()


@pytest.mark.parametrize("text", ["{", "{}", '{"exits_sha256": "", "colour": "red"}'])
def test_default_student_with_damaged_figures_says_so(cache: Cache, package: Path, text: str) -> None:
    (package / "smollm2-135m.quality.json").write_text(text)
    with pytest.raises(ConfigError, match=r"quality\.json cannot be read"):
        cache.find()


def test_default_student_is_built_with_exits_and_figures_for_real(
    tiny_source: Any, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_source("llama")
    exits = write_tiny_exits(package / "smollm2-135m.exits.safetensors", open_source(folder))
    figure = Quality(path="math", variant="w8a8", cross_entropy=2.2, text="eval", num_tokens=9)
    figures = Measured(exits_sha256=sha256_of([exits]), quality=(figure,))
    (package / "smollm2-135m.quality.json").write_bytes(msgspec.json.encode(figures))
    monkeypatch.setattr(models.building.default_student, "pull", lambda *_, **__: folder)
    manifest = read_manifest(find_student({"FENHE_CACHE": str(tmp_path / "cache")}, lambda line: None))
    assert manifest.exits_sha256 == figures.exits_sha256
    assert manifest.quality == (figure,)
    assert manifest.tasks["legal"] == "legal"


def test_default_student_is_built_at_the_precisions_that_are_wanted(
    tiny_source: Any, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_source("llama")
    monkeypatch.setattr(models.building.default_student, "pull", lambda *_, **__: folder)
    lines: list[str] = []

    def built(*wanted: str) -> list[str]:
        del lines[:]
        found = find_student({"FENHE_CACHE": str(tmp_path / "cache")}, lines.append, wanted=lambda: wanted)
        return [variant.name for variant in read_manifest(found).variants]

    assert built("w8a8") == ["w8a8"]
    assert any(line.startswith("building smollm2-135m: ") for line in lines)
    assert built("w8a8") == built() == ["w8a8"]
    assert lines == []
    assert built("int8") == ["w8a8", "int8"]
    assert "was not built at int8" in lines[0]
    assert built("w8a8") == ["w8a8", "int8"]
    assert lines == []


def test_default_student_for_any_machine_has_what_runs_with_and_without_a_compiler(
    tiny_source: Any, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_source("llama")
    monkeypatch.setattr(models.building.default_student, "pull", lambda *_, **__: folder)
    found = find_student({"FENHE_CACHE": str(tmp_path / "cache")}, lambda line: None)
    assert [variant.name for variant in read_manifest(found).variants] == ["w8a8-native", "w8a8"]


@pytest.mark.parametrize("has_lock", [True, False])
def test_default_student_that_is_complete_is_served_from_a_read_only_cache(
    cache: Cache, package: Path, has_lock: bool
) -> None:
    (package / "smollm2-135m.quality.json").write_bytes(figures_of("", 2.2))
    folder = cache.find()
    folder.with_suffix(".lock").unlink(missing_ok=True)
    if has_lock:
        folder.with_suffix(".lock").touch()
    del cache.lines[:], cache.calls[:]
    with refuse_writes(cache.folder):
        assert cache.find() == folder
    assert (cache.lines, cache.calls) == ([], [])


def test_default_student_of_another_version_is_served_from_a_read_only_cache(cache: Cache, package: Path) -> None:
    folder = cache.find()
    (package / "smollm2-135m.exits.safetensors").write_text("newer")
    del cache.lines[:], cache.calls[:]
    with refuse_writes(cache.folder):
        assert cache.find() == folder
    assert cache.calls == []
    assert len(cache.lines) == 1
    assert str(folder) in cache.lines[0]


def test_default_student_keeps_its_figures_where_newer_ones_cannot_be_written(cache: Cache, package: Path) -> None:
    folder = cache.find()
    (package / "smollm2-135m.quality.json").write_bytes(figures_of("", 2.2))
    with refuse_writes(folder):  # the lock beside it can be taken
        assert cache.find() == folder
    assert f"figures of smollm2-135m in {folder} stay as they are: Read-only" in cache.lines[-1]
    assert [one.cross_entropy for one in read_manifest(folder).quality] == [2.3]


@pytest.mark.parametrize("is_there", [True, False])
def test_default_student_that_cannot_be_written_names_the_folder_and_the_fix(cache: Cache, is_there: bool) -> None:
    if is_there:
        (cache.find() / "manifest.json").write_text("{}")
    del cache.calls[:]
    with refuse_writes(cache.folder), pytest.raises(ConfigError) as caught:
        cache.find()
    for part in (str(cache.folder / "students" / "smollm2-135m"), "Read-only", "FENHE_CACHE", "--student"):
        assert part in caught.value.message
    assert cache.calls == []


def damage(folder: Path) -> None:
    (folder / "w8a8.weights").write_bytes(bytes(99) + b"x")


def test_default_student_that_is_damaged_is_built_again(cache: Cache) -> None:
    folder = cache.find()
    damage(folder)
    del cache.lines[:], cache.calls[:]
    assert cache.find() == folder
    assert cache.calls == ["pull smollm2-135m", "build model.gguf"]
    assert f"{folder / 'w8a8.weights'} is damaged" in cache.lines[0]
    assert (folder / "w8a8.weights").read_bytes() == WEIGHTS
    del cache.lines[:], cache.calls[:]
    cache.find()
    assert (cache.lines, cache.calls) == ([], [])


@pytest.mark.parametrize("is_writable", [False, True])
def test_default_student_that_is_damaged_is_not_served_where_none_can_be_built(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, is_writable: bool
) -> None:
    def pull(name: str, folder: Path, **options: Any) -> Path:
        raise ConfigError("no network")

    damage(cache.find())
    monkeypatch.setattr(models.building.default_student, "pull", pull)
    with (
        contextlib.nullcontext() if is_writable else refuse_writes(cache.folder),
        pytest.raises(ConfigError, match="no network" if is_writable else "holds no complete student"),
    ):
        cache.find()
    assert any("w8a8.weights is damaged" in line for line in cache.lines)


def test_default_student_is_not_read_where_verification_is_off(cache: Cache) -> None:
    folder = cache.find()
    damage(folder)
    del cache.calls[:]
    assert find_student({"FENHE_CACHE": str(cache.folder)}, cache.lines.append, verify=False) == folder
    assert cache.calls == []
