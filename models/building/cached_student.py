"""Models that are no student yet, built into the cache: once for what their files hold, whole or not at all.

What is served is the built student, never the user's file: that one may be replaced, cut short or removed meanwhile.
"""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.building.progress import show_progress
from models.building.source_content import ContentDigests, States, check_unchanged, files_of, states_of
from models.errors import ConfigError, WeightsError, reason_of
from models.sources.source import GGUF_SUFFIX, ModelSource, check_complete, is_gguf, open_source
from models.student.manifest import FORMAT_VERSION, MANIFEST_NAME, read_manifest
from models.student.verification import FileVerifier

KEY_CHARS = 16
MAX_NAME_CHARS = 100
BUILDS = 2
"""Counted up when a build of the same files gives something else, so that those of before are not taken."""
NOTEWORTHY_BYTES = 256 << 20
"""Reading more than this takes a second or two, and is worth a line."""

Report = Callable[[str], None]
ChoosePrecisions = Callable[[ModelSource], Sequence[str]]

_WHAT_THERE_IS = (
    f"a student folder ({MANIFEST_NAME}, from `fenhe build`), a GGUF file, or a Hugging Face folder (config.json, "
    "*.safetensors and tokenizer.json)"
)


@dataclass(slots=True, kw_only=True, frozen=True)
class StudentCache:
    """Where students are built to. `report` gets a line before anything that takes long; without `verify` only missing
    and short files count as damage."""

    folder: Path
    report: Report
    verify: bool = True

    def find(self, path: Path, wanted: str, choose: ChoosePrecisions) -> Path:
        """The student folder of a model: the folder itself where it is one, else what was built from it, now if need
        be. Processes that start together build it once. `choose` gives the precisions to build; `wanted` says in a
        word what they depend on besides the model.

        Raises: ConfigError (no model, one that is not supported, a cache that cannot be written), WeightsError (a
        damaged file, or one that changes while it is read).
        """
        if is_student(path):
            return path
        check_place(path)
        with _reading(path):
            states = states_of(path)
            key = self._key(path, wanted)
            check_unchanged(path, states)
        found = self._built(key)
        if found is None:
            with self._turn(key):
                found = self._built(key) or self._build(path, choose, key, states)
        return found

    def _key(self, path: Path, wanted: str) -> str:
        """Follows from what the files hold, and from what is built of them."""
        digests = ContentDigests(self.folder / "sources")
        size = sum(file.stat().st_size for file in files_of(path))
        if size > NOTEWORTHY_BYTES and not digests.is_remembered(path):
            self.report(f"reading {path} ({size / 1e9:.1f} GB) to see whether a student was built from it before")
        parts = (digests.of(path), wanted, str(FORMAT_VERSION), str(BUILDS))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:KEY_CHARS]

    def _built(self, key: str) -> Path | None:
        """The student of this key that is whole, whatever its model's file was called then."""
        return next(filter(self._is_whole, sorted(self._students.glob(f"*-{key}"))), None)

    @property
    def _students(self) -> Path:
        return self.folder / "students"

    def _is_whole(self, folder: Path) -> bool:
        try:
            files = read_manifest(folder).files
            if self.verify:
                FileVerifier(folder, files).verify()
            elif short := [one.name for one in files if not _has_size(folder / one.name, one.size_bytes)]:
                raise WeightsError(f"{', '.join(short)}: missing or cut short")
        except (ConfigError, WeightsError) as error:
            self.report(f"the student in {folder} cannot be used and is built again: {error}")
            return False
        return True

    @contextlib.contextmanager
    def _turn(self, key: str) -> Iterator[None]:
        """One process at a time. Raises: ConfigError for a cache that cannot be written."""
        import filelock  # slow to import, and seldom needed

        lock = filelock.FileLock(self._students / f"{key}.lock")
        try:
            self._students.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                self.report("another process is building this student; waiting for it")
                lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _build(self, path: Path, choose: ChoosePrecisions, key: str, states: States) -> Path:
        """Build beside the folder that is returned, then take its place."""
        from models.building.build import build_student  # slow to import, and seldom needed

        model = open_model(path)
        precisions = tuple(choose(model))
        folder = self._students / f"{model_id(path)}-{key}"
        fresh = folder.with_name(f".{folder.name}.new")
        self.report(f"building a student from {path} at {', '.join(precisions)} in {folder} (once)")
        started_s = time.monotonic()
        try:
            self._remove_leftovers(key)
            with show_progress(self.report, model_id(path)) as show:
                build_student(path, fresh, name=model_id(path), precisions=precisions, show=show)
            check_unchanged(path, states)
            fresh.rename(folder)
        except OSError as error:
            check_unchanged(path, states)  # it may be the reason
            raise self._unwritable(error) from error
        self.report(f"built {folder} in {time.monotonic() - started_s:.1f} s")
        return folder

    def _remove_leftovers(self, key: str) -> None:
        """Of builds that were killed, and students that are damaged."""
        for left in (*self._students.glob(f"*-{key}"), *self._students.glob(f".*-{key}.new*")):
            shutil.rmtree(left)

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"no student can be built in {self._students}: {reason_of(error)}; make room there or make it writable, "
            "set FENHE_CACHE to another folder, or build one elsewhere with `fenhe build` and give its folder"
        )


def is_student(path: Path) -> bool:
    try:
        return (path / MANIFEST_NAME).is_file()
    except OSError:  # `check_place` says what is wrong
        return False


def name_at(path: Path) -> str:
    """What requests call a student or a model unless it is given another name. Reads no weights.

    Raises: ConfigError, WeightsError where there is neither, or one that cannot be served.
    """
    if is_student(path):
        return read_manifest(path).name
    open_model(path)
    return model_id(path)


def open_model(path: Path) -> ModelSource:
    """A model that can be built, its tensors and its tokenizer looked over. Reads no weights.

    Raises: ConfigError, WeightsError as `open_source` does; ConfigError for a folder without a model.
    """
    check_place(path)
    with _reading(path):
        model = open_source(path)
        check_complete(model)
        model.tokenizer()
    return model


def model_id(path: Path) -> str:
    """What requests call a model that has no manifest: the name of its file or folder, as far as it can be one."""
    name = Path(os.path.abspath(path)).name  # links are not followed: they may lead to files named by a digest
    name = name[: -len(GGUF_SUFFIX)] if name.lower().endswith(GGUF_SUFFIX) else name
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", name.split("@")[0])
    return plain[:MAX_NAME_CHARS].strip("._+-") or "model"


def check_place(path: Path) -> None:
    """Raises: ConfigError where there is nothing that could be a model."""
    with _reading(path):
        problem = _problem_of(path)
    if problem is not None:
        raise ConfigError(f"{path} {problem}; give {_WHAT_THERE_IS}")


def _problem_of(path: Path) -> str | None:
    if not path.exists():
        return "does not exist"
    if path.is_dir():
        return None if any(_is_models(file.name.lower()) for file in path.iterdir()) else "holds no model"
    if not path.is_file():
        return "is neither a file nor a folder"
    return None if is_gguf(path) else "is not a GGUF file"


def _is_models(name: str) -> bool:
    return name == "config.json" or name.endswith((GGUF_SUFFIX, ".safetensors"))


def _has_size(file: Path, size_bytes: int) -> bool:
    return file.is_file() and file.stat().st_size == size_bytes


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason_of(error)}; make it readable for this user") from error
