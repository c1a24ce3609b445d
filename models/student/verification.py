"""Whether a student's files are those that its manifest names, by their SHA-256.

A file that was found whole is remembered, here and in a file beside the manifest, until anything about it changes.
This finds damage; it is no protection from somebody who can write the folder, and so the manifest.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from models.checksums import sha256_of
from models.errors import WeightsError, reason_of
from models.file_writing import write_whole
from models.student.manifest import MANIFEST_NAME, FileEntry

logger = logging.getLogger(__name__)

VERIFIED_NAME = "verified.json"
SETTLED_NS = 2_000_000_000
"""A file that was changed this shortly before it was read is not remembered: file systems round times, so a change
right after it might show the same ones."""
FIX = "build the student again with `fenhe build`"


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """What the system said of a file when its content had this SHA-256. A file that is written gets another `ctime`,
    whatever `mtime` it is given."""

    sha256: str
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


class FileVerifier:
    """Compares files of one folder with their checksums. `now_ns` is the time since 1970, as files have it."""

    def __init__(self, folder: Path, entries: Iterable[FileEntry], *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._folder = folder
        self._entries = {entry.name: entry for entry in entries}
        self._known = _read_known(folder)
        self._now_ns = now_ns

    def verify(self, names: Iterable[str] | None = None, *, anew: bool = False) -> None:
        """Read every named file that is not known to be whole (None: of all; `anew`: also those that are).

        Raises: WeightsError that names the first one that is damaged, cannot be read or has no checksum.
        """
        entries = map(self._entry, dict.fromkeys(self._entries if names is None else names))
        found = [(entry.name, self._read(entry)) for entry in entries if anew or not self._is_known(entry)]
        settled = {name: whole for name, whole in found if whole is not None}
        if settled:
            self._remember(settled)

    def _entry(self, name: str) -> FileEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise WeightsError(f"{self._folder / name} has no checksum in {MANIFEST_NAME}; {FIX}") from None

    def _is_known(self, entry: FileEntry) -> bool:
        known = self._known.get(entry.name)
        if known is None:
            return False
        try:
            return known == whole_of((self._folder / entry.name).stat(), entry.sha256)
        except OSError:  # reading it says what is wrong
            return False

    def _read(self, entry: FileEntry) -> Whole | None:
        """What to remember of a file that is whole; None while it is too young, or was touched meanwhile."""
        file, started_ns = self._folder / entry.name, self._now_ns()
        try:
            before = whole_of(file.stat(), entry.sha256)
            sha256 = sha256_of([file])
            after = whole_of(file.stat(), entry.sha256)
        except OSError as error:
            raise WeightsError(f"{file} cannot be read: {reason_of(error)}; {FIX}") from error
        if sha256 != entry.sha256:
            raise WeightsError(f"{file} is damaged: its SHA-256 is not the one in {MANIFEST_NAME}; {FIX}")
        is_settled = before == after and max(after.mtime_ns, after.ctime_ns) < started_ns - SETTLED_NS
        return after if is_settled else None

    def _remember(self, settled: dict[str, Whole]) -> None:
        self._known |= settled
        kept = msgspec.json.format(msgspec.json.encode(_read_known(self._folder) | settled))
        with contextlib.suppress(OSError):  # in a folder that cannot be written files are read at every start
            write_whole(self._folder / VERIFIED_NAME, kept)
        logger.debug("files verified folder=%s files=%s", self._folder, ",".join(settled))


def whole_of(status: os.stat_result, sha256: str) -> Whole:
    """What to remember of a file."""
    return Whole(
        sha256=sha256,
        device=status.st_dev,
        inode=status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )


def _read_known(folder: Path) -> dict[str, Whole]:
    """What was remembered; nothing where that cannot be read. What it says counts only where the manifest, and the
    system, say the same of a file now."""
    try:
        return msgspec.json.decode((folder / VERIFIED_NAME).read_bytes(), type=dict[str, Whole])
    except (OSError, msgspec.DecodeError, RecursionError):
        return {}
