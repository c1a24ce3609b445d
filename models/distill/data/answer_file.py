"""The file of the teacher's answers: appended to as they arrive, and usable after a kill."""

import os
from pathlib import Path
from types import TracebackType

import msgspec

from models.errors import ConfigError

ANSWERS_PER_SYNC = 32


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file. It is valid training data too; `key` identifies prompt, teacher and settings."""

    key: str
    task: str
    prompt: str
    answer: str
    is_complete: bool
    source: str
    licence: str


class AnswerFile:
    """Answers by key, one JSON line each. An incomplete last line, left by a kill, is cut off. One writer at a time."""

    def __init__(self, path: Path) -> None:
        """Raises: ConfigError that names the damaged line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._num_unsynced = 0
        self._file = path.open("a+b")
        try:
            self._file.truncate(self._read())
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: Entry) -> None:
        """Write at once, so that a killed process loses nothing; every few answers also to the disk itself."""
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()
        self.entries[entry.key] = entry
        self._num_unsynced += 1
        if self._num_unsynced >= ANSWERS_PER_SYNC:
            self._sync()

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._num_unsynced = 0

    def _read(self) -> int:
        """Fill `entries`. Returns how many bytes of the file are whole lines."""
        self._file.seek(0)
        num_whole_bytes = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            entry = self._decoded(line, number)
            self.entries[entry.key] = entry
            num_whole_bytes += len(line)
        return num_whole_bytes

    def _decoded(self, line: bytes, number: int) -> Entry:
        try:
            return msgspec.json.decode(line, type=Entry)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{self.path} line {number} is damaged ({error}); delete that line to have its prompt asked again"
            ) from error
