"""The files that a model is read from: a digest of what they hold, remembered, and whether they stay the same."""

import contextlib
import hashlib
import os
import time
from pathlib import Path

import msgspec

from models.checksums import sha256_of
from models.errors import WeightsError
from models.file_writing import write_whole
from models.student.verification import SETTLED_NS, Whole, whole_of

SUFFIXES = frozenset({".gguf", ".safetensors", ".json", ".jinja"})
CARD = "README.md"
"""Of a folder, which states the licence."""

States = dict[Path, Whole]


def files_of(source: Path) -> tuple[Path, ...]:
    """The file itself; of a folder all that a model may be read from."""
    if not source.is_dir():
        return (source,)
    inside = [file for file in source.iterdir() if file.suffix.lower() in SUFFIXES or file.name == CARD]
    return tuple(sorted(file for file in inside if file.is_file()))


def states_of(source: Path) -> States:
    """What the system says of every file of a source. They are equal while nobody writes to any, or replaces it."""
    return {file: whole_of(file.stat(), "") for file in files_of(source)}


def check_unchanged(source: Path, before: States) -> None:
    """Raises: WeightsError where a file of the source is another one than before, was written to, or is gone."""
    try:
        after = states_of(source)
    except FileNotFoundError:
        after = {}
    changed = sorted(str(file) for file in before.keys() | after.keys() if before.get(file) != after.get(file))
    if changed:
        raise WeightsError(f"{', '.join(changed)} changed while it was read; try again once it is complete")


class ContentDigests:
    """SHA-256 of what sources hold. What a file held is remembered in `memory`, a file for each, until anything about
    it changes: a model of some gigabytes is not read again at every start."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory

    def of(self, source: Path) -> str:
        """Of a file the digest of its content, of a folder that of its files' names and contents."""
        digests = {file: self._of_file(file) for file in files_of(source)}
        if not source.is_dir():
            return digests[source]
        lines = "".join(f"{sha256} {file.name}\n" for file, sha256 in digests.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    def is_remembered(self, source: Path) -> bool:
        """Whether `of` reads nothing."""
        return all(self._recall(file) is not None for file in files_of(source))

    def _of_file(self, file: Path) -> str:
        known = self._recall(file)
        if known is not None:
            return known
        started_ns = time.time_ns()
        before = file.stat()
        sha256 = sha256_of([file])
        after = file.stat()
        is_same = whole_of(before, sha256) == whole_of(after, sha256)
        if is_same and max(after.st_mtime_ns, after.st_ctime_ns) < started_ns - SETTLED_NS:
            self._remember(file, whole_of(after, sha256))
        return sha256

    def _recall(self, file: Path) -> str | None:
        try:
            known = msgspec.json.decode(self._note(file).read_bytes(), type=Whole)
        except (OSError, msgspec.DecodeError, RecursionError):
            return None
        return known.sha256 if known == whole_of(file.stat(), known.sha256) else None

    def _remember(self, file: Path, whole: Whole) -> None:
        with contextlib.suppress(OSError):  # where nothing can be written it is read at every start
            self._memory.mkdir(parents=True, exist_ok=True)
            write_whole(self._note(file), msgspec.json.encode(whole))

    def _note(self, file: Path) -> Path:
        name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()
        return self._memory / f"{name[:32]}.json"
