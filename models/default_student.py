"""The student served when none is named: found in the cache, or pulled and built there first."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from models.build import build_student
from models.errors import ConfigError
from models.fetch import cache_folder, pull
from models.manifest import MANIFEST_NAME, read_manifest

DEFAULT_MODEL = "smollm2-135m"


def find_student(environ: Mapping[str, str], report: Callable[[str], None]) -> Path:
    """The folder of the default student; `report` gets a line before whatever takes long.

    Raises: ConfigError when it cannot be fetched or built.
    """
    cache = cache_folder(environ)
    folder = cache / "students" / DEFAULT_MODEL
    if (folder / MANIFEST_NAME).exists():
        try:
            read_manifest(folder)
        except ConfigError as error:
            report(f"building {DEFAULT_MODEL} again: {error}")
            shutil.rmtree(folder)
        else:
            return folder
    report(f"no student named; pulling {DEFAULT_MODEL} into {cache} (once)")
    source = pull(DEFAULT_MODEL, cache, show_progress=True)
    report(f"building {DEFAULT_MODEL} in {folder} (once)")
    build_student(source, folder, name=DEFAULT_MODEL, show_progress=True)
    return folder
