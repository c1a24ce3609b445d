"""A model file is built into the cache once for its content; what cannot be is refused by name, and nothing is left."""

import errno
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import models.building.build
from models.building.build import build_student
from models.building.cached_student import StudentCache, model_id, name_at
from models.errors import ConfigError, ServingError, WeightsError
from models.graphs.decoder_graph import write_head
from models.sources.source import ModelSource
from models.student.folder import Student
from models.student.manifest import read_manifest
from tests.disk_faults import refuse_reads, refuse_writes

KEPT = ("gguf-native",)
ROOT = Path(__file__).parents[3]


@dataclass(slots=True)
class Cache:
    """A cache, and what was reported of it."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def find(self, path: Path, precisions: Sequence[str] = KEPT, *, verify: bool = True) -> Path:
        def choose(model: ModelSource) -> Sequence[str]:
            return precisions

        cache = StudentCache(folder=self.folder, report=self.lines.append, verify=verify)
        return cache.find(path, ",".join(precisions), choose)

    @property
    def num_builds(self) -> int:
        return sum(line.startswith("built ") for line in self.lines)

    @property
    def left(self) -> list[str]:
        """Everything but students and locks."""
        inside = sorted((self.folder / "students").glob("*"))
        return [one.name for one in inside if not (one.suffix == ".lock" or (one / "manifest.json").exists())]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def file(tiny_source: Any, tiny_gguf: Any) -> Path:
    found: Path = tiny_gguf(tiny_source("llama"), quantisation="Q4_0")
    return found


def test_gguf_file_is_built_once(cache: Cache, file: Path) -> None:
    folder = cache.find(file)
    assert cache.find(file) == folder
    assert cache.num_builds == 1
    manifest = Student.open(folder).manifest
    assert [variant.name for variant in manifest.variants] == ["gguf-native"]
    assert manifest.name == file.stem
    assert folder.parent == cache.folder / "students"
    assert cache.left == []


def test_what_is_built_is_said_with_percents(cache: Cache, file: Path) -> None:
    folder = cache.find(file)
    first, *between, last = cache.lines
    assert first == f"building a student from {file} at gguf-native in {folder} (once)"
    assert all(line.startswith(f"building {file.stem}: ") and " %, " in line for line in between)
    assert len(between) > 3
    assert last.startswith(f"built {folder} in ")


def test_copy_under_another_name_is_the_same_student(cache: Cache, file: Path) -> None:
    copy = file.with_name("other name.gguf")
    copy.write_bytes(file.read_bytes())
    assert cache.find(copy) == cache.find(file)
    assert cache.num_builds == 1


def test_changed_file_is_built_anew_beside_the_earlier_student(
    cache: Cache, file: Path, tiny_source: Any, tiny_gguf: Any
) -> None:
    first = cache.find(file)
    file.write_bytes(tiny_gguf(tiny_source("llama"), quantisation="Q8_0").read_bytes())
    second = cache.find(file)
    assert first != second
    assert read_manifest(first).source_sha256 != read_manifest(second).source_sha256


def test_other_precisions_are_another_student(cache: Cache, file: Path) -> None:
    assert cache.find(file) != cache.find(file, ("w8a8",))
    assert cache.num_builds == 2


def test_hugging_face_folder_is_built_and_follows_its_files(cache: Cache, tiny_source: Any) -> None:
    folder = tiny_source("qwen3")
    first = cache.find(folder, ("w8a8",))
    assert cache.find(folder, ("w8a8",)) == first
    assert read_manifest(first).name == folder.name
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    assert cache.find(folder, ("w8a8",)) != first


def test_student_folder_is_itself(cache: Cache, file: Path, tmp_path: Path) -> None:
    build_student(file, tmp_path / "mine", precisions=KEPT)
    assert cache.find(tmp_path / "mine") == tmp_path / "mine"
    assert not cache.folder.exists()


@pytest.mark.parametrize("verify", [True, False])
def test_damaged_student_is_built_again(cache: Cache, file: Path, verify: bool) -> None:
    folder = cache.find(file)
    weights = folder / "head.gguf.weights"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert cache.find(file, verify=verify) == folder
    assert weights.read_bytes() == whole
    assert any(f"the student in {folder} cannot be used" in line for line in cache.lines)
    weights.write_bytes(bytes(len(whole)))
    cache.find(file, verify=verify)
    assert (weights.read_bytes() == whole) == verify
    assert cache.left == []


def test_interrupted_build_leaves_nothing_that_is_taken_for_a_student(
    cache: Cache, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(models.building.build, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            cache.find(file)
    assert cache.left == []
    assert cache.num_builds == 0
    cache.find(file)
    assert cache.num_builds == 1


KILLED = """
import os, sys
from pathlib import Path
import models.building.build as build
from models.building.cached_student import StudentCache
build.write_manifest = lambda *_: os._exit(9)
cache = StudentCache(folder=Path(sys.argv[2]), report=print)
cache.find(Path(sys.argv[1]), "gguf-native", lambda model: ("gguf-native",))
"""


def test_killed_build_is_cleared_away_by_the_next(cache: Cache, file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), str(cache.folder)], cwd=ROOT, check=False)
    assert done.returncode == 9
    (left,) = cache.left
    assert left.endswith(".partial")
    assert Student.open(cache.find(file)).manifest.name == file.stem
    assert cache.left == []


BUILDER = """
import sys
from pathlib import Path
from models.building.cached_student import StudentCache
cache = StudentCache(folder=Path(sys.argv[2]), report=lambda line: print(line, flush=True))
print("found", cache.find(Path(sys.argv[1]), "gguf-native", lambda model: ("gguf-native",)))
"""


def test_processes_that_start_together_build_once(cache: Cache, file: Path) -> None:
    command = [sys.executable, "-c", BUILDER, str(file), str(cache.folder)]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sum(text.count("\nbuilt ") for text in told) == 1
    assert len({text.splitlines()[-1] for text in told}) == 1


def test_second_of_two_waits_for_the_first(cache: Cache, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_building, may_end = threading.Event(), threading.Event()
    real = models.building.build.build_student

    def slow(*arguments: Any, **options: Any) -> Any:
        is_building.set()
        assert may_end.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr(models.building.build, "build_student", slow)
    found: list[Path] = []
    other = Cache(cache.folder)
    threads = [threading.Thread(target=lambda one=one: found.append(one.find(file))) for one in (cache, other)]
    threads[0].start()
    assert is_building.wait(60)
    threads[1].start()
    pause = threading.Event()
    while not any("waiting for it" in line for line in other.lines):
        assert not pause.wait(0.01)
    assert found == []
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1]
    assert (cache.num_builds, other.num_builds) == (1, 0)


@pytest.mark.parametrize("how", ["replaced", "cut short", "removed"])
def test_file_that_changes_while_it_is_built_is_refused_and_nothing_kept(
    cache: Cache, file: Path, tiny_source: Any, tiny_gguf: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    other = tiny_gguf(tiny_source("llama"), quantisation="Q4_0", metadata={"general.license": "other"})

    def interfere(*arguments: Any, **options: Any) -> Any:
        written = write_head(*arguments, **options)
        if how == "replaced":
            os.replace(other, file)
        elif how == "removed":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size // 2)
        return written

    monkeypatch.setattr(models.building.build, "write_head", interfere)
    with pytest.raises((WeightsError, ConfigError), match=rf"{file}.* (changed|cut short|cannot be read)"):
        cache.find(file)
    assert cache.left == []
    assert list((cache.folder / "students").glob("*/manifest.json")) == []


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 3 // 4)


def cut_header(file: Path) -> None:
    os.truncate(file, 2000)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other_bytes(file: Path) -> None:
    file.write_bytes(b"PK\3\4" + bytes(4000))


def rewritten(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new, 1))

    return change


def with_kind(number: int) -> Callable[[Path], None]:
    """The kind of one matrix as another number of ggml's."""
    name = b"blk.2.ffn_up.weight"
    place = struct.pack("<IQQ", 2, 64, 96)
    return rewritten(name + place + struct.pack("<I", 2), name + place + struct.pack("<I", number))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "is cut short: tensor .* fetch it again"),
        (cut_header, "is damaged or cut short at byte .* fetch it again"),
        (empty, "0 bytes are too few for a GGUF file"),
        (other_bytes, "is not a GGUF file"),
        (
            rewritten(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0gemma"),
            "models of the 'gemma' family are not supported",
        ),
        (with_kind(99), "tensor 'blk.2.ffn_up.weight' is stored as kind 99 of ggml's.* such as Q4_K_M"),
        (with_kind(9), r"tensors stored as Q8_1 cannot be read \(1 of them, such as blk.2.ffn_up.weight\)"),
        (rewritten(b"tokenizer.ggml.model", b"tokenizer.ggml.mOdel"), "metadata tokenizer.ggml.model is missing"),
        (rewritten(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tOkens"), "metadata tokenizer.ggml.tokens is missing"),
        (
            rewritten(b"blk.3.ffn_down.weight", b"blk.3.ffn_dOwn.weight"),
            "missing tensors: model.layers.3.mlp.down_proj",
        ),
    ],
)
def test_file_that_is_no_model_is_refused_by_name(
    cache: Cache, file: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(file)
    with pytest.raises(ServingError, match=rf"{file}.*({words})"):
        cache.find(file)
    assert cache.left == []
    with pytest.raises(ServingError):
        name_at(file)


def test_places_that_hold_no_model_are_told_what_could_be_there(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\3\4" + bytes(4000))
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (
        ("nowhere", "does not exist"),
        ("empty", "holds no model"),
        ("model.bin", "is not a GGUF file"),
        ("pipe", "is neither a file nor a folder"),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        with pytest.raises(ConfigError, match=rf"{name} {problem}") as caught:
            cache.find(tmp_path / name)
        assert "GGUF file" in caught.value.message or "readable" in caught.value.message
    assert not cache.folder.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "it has no config.json"),
        ("model.safetensors", r"no \*.safetensors"),
        ("tokenizer.json", "has no tokenizer.json; make one"),
    ],
)
def test_folder_that_lacks_a_file_is_refused_by_name(cache: Cache, tiny_source: Any, name: str, words: str) -> None:
    folder = tiny_source("llama")
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"{folder}.*{words}"):
        cache.find(folder, ("w8a8",))
    assert cache.left == []


def test_file_that_cannot_be_read_is_named(cache: Cache, file: Path) -> None:
    with refuse_reads(file), pytest.raises(ConfigError, match=rf"{file} cannot be read: Permission denied.*readable"):
        cache.find(file)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "Read-only file system"), (errno.ENOSPC, "No space left on device")]
)
def test_cache_that_cannot_be_written_is_named_with_the_fix(cache: Cache, file: Path, number: int, words: str) -> None:
    with refuse_writes(cache.folder, number), pytest.raises(ConfigError, match=words) as caught:
        cache.find(file)
    for part in (str(cache.folder / "students"), "FENHE_CACHE", "make room"):
        assert part in caught.value.message


def test_student_that_is_there_is_found_in_a_read_only_cache(cache: Cache, file: Path) -> None:
    folder = cache.find(file)
    with refuse_writes(cache.folder):
        assert cache.find(file) == folder
    assert cache.num_builds == 1


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
        ("My model (final).GGUF", "My-model-final"),
        ("folder", "folder"),
        ("ORG--m@main", "ORG--m"),
        ("模型.gguf", "model"),
        ("..gguf", "model"),
        ("x" * 300, "x" * 100),
    ],
)
def test_model_id_is_its_files_name_as_far_as_it_can_be_one(name: str, id: str) -> None:
    assert model_id(Path("somewhere") / name) == id


def test_model_id_of_a_link_is_the_links_own(tmp_path: Path) -> None:
    (tmp_path / "0a1b").touch()
    (tmp_path / "good.gguf").symlink_to(tmp_path / "0a1b")
    assert model_id(tmp_path / "good.gguf") == "good"


def test_name_at_is_the_manifests_or_the_files(file: Path, tmp_path: Path) -> None:
    assert name_at(file) == file.stem
    build_student(file, tmp_path / "mine", name="own", precisions=KEPT)
    assert name_at(tmp_path / "mine") == "own"
