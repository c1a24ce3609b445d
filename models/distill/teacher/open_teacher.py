"""Finds and opens a teacher: a file, a folder, a name to pull, or the model that a student was built from."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.sources.fetch import HUB_PREFIX, WHEELS, cache_folder, pull
from models.sources.source import ModelSource, check_complete, open_source
from models.student.manifest import MANIFEST_NAME, Manifest, read_manifest

SHOWN_DIGEST_CHARS = 12


def open_teacher(name: str, environ: Mapping[str, str] | None = None) -> ModelSource:
    """Raises: ConfigError, WeightsError that names the file."""
    source = open_source(find_teacher(name, os.environ if environ is None else environ))
    check_complete(source)
    return source


def find_teacher(name: str, environ: Mapping[str, str]) -> Path:
    """A file or folder, a model that `fenhe pull` knows (it is pulled), or the model that a student was built from.

    Raises: ConfigError, WeightsError for a model that cannot be pulled, and for a student whose model is not found.
    """
    path = Path(name).expanduser()
    cache = cache_folder(environ)
    if (path / MANIFEST_NAME).exists():
        return _origin(path, cache)
    is_path = path.exists() or "/" in name or path.suffix.lower() == ".gguf"
    if is_path and not name.startswith(HUB_PREFIX):
        return path
    return pull(name, cache, show_progress=sys.stderr.isatty())


def _origin(folder: Path, cache: Path) -> Path:
    """The model file that a student's manifest names, beside the student or in the cache.

    Raises: ConfigError that says what to give instead: a student holds graphs, no weights to train on.
    """
    refusal = f"{folder} is a student: it holds graphs, not weights to train on; give the model that it was built from"
    try:
        manifest = read_manifest(folder)
    except (ConfigError, WeightsError) as error:
        raise ConfigError(f"{refusal} (its manifest does not say which: {error})") from error
    for file in _places(manifest.source, folder, cache):
        if file.is_file() and sha256_of([file]) == manifest.source_sha256:
            return file
    raise ConfigError(f"{refusal}: {_described(manifest)}, as `source` in its {MANIFEST_NAME} says")


def _places(name: str, folder: Path, cache: Path) -> Iterator[Path]:
    if name.lower().endswith(".gguf") and "/" not in name:
        yield from (place / name for place in (folder, folder.parent, *(cache / known for known in WHEELS)))


def _described(manifest: Manifest) -> str:
    digest = f"SHA-256 {manifest.source_sha256[:SHOWN_DIGEST_CHARS]}..."
    for known, wheel in WHEELS.items():
        if wheel.member_sha256 == manifest.source_sha256:
            return f'teacher = "{known}", which `fenhe pull` knows'
    kind = "that file" if manifest.source.lower().endswith(".gguf") else "the Hugging Face folder with the file"
    return f"{kind} {manifest.source} ({digest})"
