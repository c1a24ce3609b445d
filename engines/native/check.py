"""Tries a compiled library in a child process first: a wrong binary interface would crash the server."""

import logging
import subprocess
import sys
from pathlib import Path

import onnxruntime

from models.errors import reason_of

logger = logging.getLogger(__name__)

TRIAL_TIMEOUT_S = 120.0


def find_fault(library: Path, cache_folder: Path) -> str | None:
    """Why the library must not be used, or None. A success is remembered per release of onnxruntime."""
    passed = cache_folder / f"{library.name}.passed-{onnxruntime.__version__}"
    if passed.exists():
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
        passed.touch()
    except OSError as error:
        logger.info("trial not remembered reason=%r: it runs again at every start", reason_of(error))
    return None
