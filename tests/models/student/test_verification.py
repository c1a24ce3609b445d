"""Files are compared with their checksums once for as long as nothing about them changes, and nothing else counts."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

import models.student.verification
from models.checksums import sha256_of
from models.errors import WeightsError
from models.student.manifest import FileEntry
from models.student.verification import SETTLED_NS, VERIFIED_NAME, FileVerifier, Whole
from tests.disk_faults import refuse_writes

CONTENTS = {"a": b"a" * 100, "b": b"b" * 100}


@dataclass(slots=True)
class Disk:
    """A folder, the names of the files that were read, and the time."""

    folder: Path
    read: list[str] = field(default_factory=list)
    now_ns: int = 0

    def verifier(self, contents: dict[str, bytes] = CONTENTS) -> FileVerifier:
        entries = [
            FileEntry(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        ]
        return FileVerifier(self.folder, entries, now_ns=lambda: self.now_ns)

    def newly_read(self, names: Iterable[str] | None = None, *, anew: bool = False) -> list[str]:
        """What the next process reads to verify these files."""
        self.read.clear()
        self.verifier().verify(names, anew=anew)
        return list(self.read)

    def age(self) -> None:
        """Let the files become old enough to be remembered."""
        changed = [file.stat() for file in self.folder.iterdir()]
        self.now_ns = max(max(one.st_mtime_ns, one.st_ctime_ns) for one in changed) + SETTLED_NS + 1


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path / "student")

    def read(files: list[Path]) -> str:
        disk.read.extend(file.name for file in files)
        return sha256_of(files)

    monkeypatch.setattr(models.student.verification, "sha256_of", read)
    disk.folder.mkdir()
    for name, content in CONTENTS.items():
        (disk.folder / name).write_bytes(content)
    disk.age()
    return disk


def test_verify_reads_each_file_once_in_its_life(disk: Disk) -> None:
    assert disk.newly_read(["a"]) == ["a"]
    assert disk.newly_read(["a", "b", "a"]) == ["b"]
    assert disk.newly_read() == []
    assert disk.newly_read(anew=True) == ["a", "b"]


def rewrite(file: Path) -> None:
    file.write_bytes(file.read_bytes())


def replace(file: Path) -> None:
    fresh = file.with_suffix(".fresh")
    fresh.write_bytes(file.read_bytes())
    fresh.replace(file)


def touch(file: Path) -> None:
    os.utime(file, ns=(0, 0))


@pytest.mark.parametrize("change", [rewrite, replace, touch])
def test_verify_reads_again_what_was_written_again(disk: Disk, change: Callable[[Path], None]) -> None:
    disk.newly_read()
    change(disk.folder / "b")
    assert disk.newly_read() == ["b"]


@pytest.mark.parametrize("keeps_times", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
def test_verify_finds_other_content_of_the_same_size_and_time(disk: Disk, keeps_times: bool, replaces: bool) -> None:
    disk.newly_read()
    file = disk.folder / "b"
    before = file.stat()
    target = file.with_suffix(".fresh") if replaces else file
    target.write_bytes(b"b" * 99 + b"c")
    target.replace(file)
    if keeps_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):  # what is damaged is not remembered
        with pytest.raises(WeightsError, match=f"{file} is damaged.*fenhe build"):
            disk.newly_read()


def test_verify_finds_files_that_changed_places(disk: Disk) -> None:
    disk.newly_read()
    a, b, other = (disk.folder / name for name in ("a", "b", "c"))
    a.rename(other)
    b.rename(a)
    other.rename(b)
    with pytest.raises(WeightsError, match=f"{a} is damaged"):
        disk.newly_read()


def test_verify_finds_a_file_that_was_cut_and_padded(disk: Disk) -> None:
    disk.newly_read()
    with (disk.folder / "b").open("r+b") as file:
        file.truncate(50)
        file.truncate(100)
    with pytest.raises(WeightsError, match="b is damaged"):
        disk.newly_read()


def test_verify_believes_no_memo_over_the_manifest(disk: Disk) -> None:
    disk.newly_read()
    with pytest.raises(WeightsError, match="b is damaged"):
        disk.verifier({"a": CONTENTS["a"], "b": b"other"}).verify()


def test_verify_refuses_files_without_a_checksum_and_names_those_that_are_gone(disk: Disk) -> None:
    (disk.folder / "c").write_bytes(b"c")
    with pytest.raises(WeightsError, match="c has no checksum in manifest"):
        disk.newly_read(["a", "c"])
    disk.newly_read()
    (disk.folder / "b").unlink()
    with pytest.raises(WeightsError, match="b cannot be read: No such file"):
        disk.newly_read()


def test_verify_names_a_file_that_the_disk_cannot_read(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(files: list[Path]) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(models.student.verification, "sha256_of", fail)
    with pytest.raises(WeightsError, match=r"a cannot be read: Input/output error.*fenhe build"):
        disk.newly_read()


DAMAGES: list[bytes] = [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 100_000, b'{"a": {"sha256": "x"}}']


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_verify_ignores_a_damaged_memo_and_writes_another(disk: Disk, damage: bytes) -> None:
    (disk.folder / VERIFIED_NAME).write_bytes(damage)
    assert disk.newly_read() == ["a", "b"]
    assert disk.newly_read() == []


@pytest.mark.parametrize("part", list(Whole.__struct_fields__))
def test_verify_ignores_what_the_memo_says_of_another_file(disk: Disk, part: str) -> None:
    disk.newly_read()
    file = disk.folder / VERIFIED_NAME
    kept = msgspec.json.decode(file.read_bytes(), type=dict[str, Whole])
    value = "0" * 64 if part == "sha256" else getattr(kept["b"], part) + 1
    kept["b"] = msgspec.structs.replace(kept["b"], **{part: value})
    file.write_bytes(msgspec.json.encode(kept))
    assert disk.newly_read() == ["b"]


def test_verify_does_not_take_over_the_memo_of_a_copied_folder(disk: Disk) -> None:
    disk.newly_read()
    copy = Disk(disk.folder.with_name("copy"), disk.read, disk.now_ns)
    copy.folder.mkdir()
    for name in ("a", "b", VERIFIED_NAME):
        (copy.folder / name).write_bytes((disk.folder / name).read_bytes())
    assert copy.newly_read() == ["a", "b"]


def test_verify_remembers_nothing_that_was_written_a_moment_ago(disk: Disk) -> None:
    disk.now_ns -= SETTLED_NS
    assert disk.newly_read() == disk.newly_read() == ["a", "b"]
    disk.age()
    assert disk.newly_read() == ["a", "b"]
    assert disk.newly_read() == []


def test_verify_in_a_folder_that_cannot_be_written_reads_once_per_process(disk: Disk) -> None:
    with refuse_writes(disk.folder):
        assert disk.newly_read() == disk.newly_read() == ["a", "b"]
        verifier = disk.verifier()
        verifier.verify()
        disk.read.clear()
        verifier.verify()
        assert disk.read == []


def test_verify_keeps_what_another_process_remembered(disk: Disk) -> None:
    first, second = disk.verifier(), disk.verifier()
    first.verify(["a"])
    second.verify(["b"])
    assert disk.newly_read() == []
