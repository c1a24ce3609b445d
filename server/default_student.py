"""The student served when none is named: found in the cache, or pulled and built there first."""

from collections.abc import Callable, Mapping
from pathlib import Path

from models.manifest import MANIFEST_NAME

DEFAULT_MODEL = "smollm2-135m"


def find_student(environ: Mapping[str, str], report: Callable[[str], None]) -> Path:
    """The folder of the default student; `report` gets a line before whatever takes long.

    Raises: ConfigError when it cannot be fetched or built.
    """
    from models.build import build_student
    from models.fetch import cache_folder, pull

    cache = cache_folder(environ)
    folder = cache / "students" / DEFAULT_MODEL
    if (folder / MANIFEST_NAME).exists():
        return folder
    report(f"no student named; pulling {DEFAULT_MODEL} into {cache} (once)")
    source = pull(DEFAULT_MODEL, cache, show_progress=True)
    report(f"building {DEFAULT_MODEL} in {folder} (once)")
    build_student(source, folder, name=DEFAULT_MODEL, show_progress=True)
    return folder
