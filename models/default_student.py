"""The student served when none is named: found in the cache, or pulled and built there first."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from filelock import FileLock

from models.build import build_student
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.fetch import cache_folder, pull
from models.manifest import MANIFEST_NAME, Measured
from models.student import Student

DEFAULT_MODEL = "smollm2-135m"
PACKAGED = Path(__file__).parent / "data"
"""May hold `smollm2-135m.exits.safetensors`, and what `fenhe eval` measured of it in `smollm2-135m.quality.json`."""


def find_student(environ: Mapping[str, str], report: Callable[[str], None]) -> Path:
    """The folder of the default student; `report` gets a line before whatever takes long.

    One that is damaged, of another version or with other exits than this package has is built again. Processes that
    start together build it once.

    Raises: ConfigError when it cannot be fetched or built.
    """
    cache = cache_folder(environ)
    folder = cache / "students" / DEFAULT_MODEL
    folder.parent.mkdir(parents=True, exist_ok=True)
    exits = _packaged_exits()
    with FileLock(folder.with_suffix(".lock")):
        if not _is_whole(folder, exits, report):
            report(f"no student named; pulling {DEFAULT_MODEL} into {cache} (once)")
            source = pull(DEFAULT_MODEL, cache, show_progress=True)
            report(f"building {DEFAULT_MODEL} in {folder} (once)")
            build_student(
                source, folder, name=DEFAULT_MODEL, exits=exits, measured=_packaged_figures(), show_progress=True
            )
    return folder


def _packaged_exits() -> Path | None:
    file = PACKAGED / f"{DEFAULT_MODEL}.exits.safetensors"
    return file if file.exists() else None


def _packaged_figures() -> Measured | None:
    file = PACKAGED / f"{DEFAULT_MODEL}.quality.json"
    if not file.exists():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=Measured)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} cannot be read: {error}; install fenhe again, or remove the file") from error


def _is_whole(folder: Path, exits: Path | None, report: Callable[[str], None]) -> bool:
    """Whether there is a student that can be opened and has these exits; any other is removed."""
    if not (folder / MANIFEST_NAME).exists():
        return False
    try:
        manifest = Student.open(folder).manifest
    except (ConfigError, WeightsError) as error:
        report(f"removing a student that cannot be used: {error}")
        shutil.rmtree(folder)
        return False
    if manifest.exits_sha256 != ("" if exits is None else sha256_of([exits])):
        report(f"removing a {DEFAULT_MODEL} with other exits than this version of fenhe has")
        shutil.rmtree(folder)
        return False
    return True
