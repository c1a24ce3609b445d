"""The student served when none is named: found in the cache, or pulled and built there first."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from models.build import build_student
from models.errors import ConfigError, WeightsError
from models.fetch import cache_folder, pull
from models.manifest import MANIFEST_NAME
from models.student import Student

DEFAULT_MODEL = "smollm2-135m"


def find_student(environ: Mapping[str, str], report: Callable[[str], None]) -> Path:
    """The folder of the default student; `report` gets a line before whatever takes long.

    One that is damaged or of another version is built again. Processes that start together build it once.

    Raises: ConfigError when it cannot be fetched or built.
    """
    cache = cache_folder(environ)
    folder = cache / "students" / DEFAULT_MODEL
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not _is_whole(folder, report):
            report(f"no student named; pulling {DEFAULT_MODEL} into {cache} (once)")
            source = pull(DEFAULT_MODEL, cache, show_progress=True)
            report(f"building {DEFAULT_MODEL} in {folder} (once)")
            build_student(source, folder, name=DEFAULT_MODEL, show_progress=True)
    return folder


def _is_whole(folder: Path, report: Callable[[str], None]) -> bool:
    """Whether there is a student that can be opened; what cannot be is removed."""
    if not (folder / MANIFEST_NAME).exists():
        return False
    try:
        Student.open(folder)
    except (ConfigError, WeightsError) as error:
        report(f"removing a student that cannot be used: {error}")
        shutil.rmtree(folder)
        return False
    return True
