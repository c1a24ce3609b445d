"""Tries a compiled library in a child process first: a wrong binary interface would crash the server."""

import logging
import subprocess
import sys
from pathlib import Path

import onnxruntime

from models.checksums import sha256_of
from models.errors import reason_of
from models.file_writing import write_whole

logger = logging.getLogger(__name__)

TRIAL_TIMEOUT_S = 120.0


def find_fault(library: Path, cache_folder: Path) -> str | None:
    """Why the library must not be used, or None. A success is remembered for these bytes and this release of
    onnxruntime."""
    passed = _passed_file(library, cache_folder)
    sha256 = sha256_of([library])
    if _read(passed) == sha256:
        return None
    command = [sys.executable, "-m", "engines.native.trial", str(library)]
    try:
        trial = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"the trial took more than {TRIAL_TIMEOUT_S:.0f} s"
    if trial.returncode != 0:
        return f"the trial ended with {trial.returncode}: {trial.stderr.strip()[-500:]}"
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        write_whole(passed, sha256.encode())
    except OSError as error:
        logger.info("trial not remembered reason=%r: it runs again at every start", reason_of(error))
    return None


def is_damaged(library: Path, cache_folder: Path) -> bool:
    """Whether other bytes of the same name passed here: the trial does not run all there is, so that cannot tell."""
    passed = _read(_passed_file(library, cache_folder))
    return bool(passed) and passed != sha256_of([library])


def _passed_file(library: Path, cache_folder: Path) -> Path:
    """Holds the SHA-256 of the library that passed; nothing if an earlier version of fenhe wrote it."""
    return cache_folder / f"{library.name}.passed-{onnxruntime.__version__}"


def _read(passed: Path) -> str:
    return passed.read_text(encoding="utf-8", errors="replace") if passed.exists() else ""
