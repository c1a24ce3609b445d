"""What a manifest says of the files of a student that a test makes by hand."""

from pathlib import Path

from models.checksums import sha256_of
from models.student.manifest import FileEntry


def entries_of(folder: Path) -> tuple[FileEntry, ...]:
    files = sorted(folder.iterdir())
    return tuple(FileEntry(name=one.name, size_bytes=one.stat().st_size, sha256=sha256_of([one])) for one in files)
