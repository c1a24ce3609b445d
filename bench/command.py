"""The installed `fenhe`: its command, to be measured as a process of its own, and its version."""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def installed_command() -> str:
    """The program beside this Python, else the one on PATH.

    Raises: FileNotFoundError when there is neither.
    """
    beside = Path(sys.executable).with_name("fenhe")
    found = str(beside) if beside.exists() else shutil.which("fenhe")
    if found is None:
        raise FileNotFoundError("the command `fenhe` is not installed: `pip install -e .` in the checkout")
    return found


def installed_version() -> str:
    try:
        return version("fenhe")
    except PackageNotFoundError:
        return "source tree"
