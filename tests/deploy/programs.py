"""Where the programs are that check what `deploy/` holds: `.venv-deploy`, which the Makefile fills, or the PATH."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-deploy"
CHART = ROOT / "deploy" / "helm" / "fenhe"


def find_program(name: str, *folders: str) -> str | None:
    """The first of `TOOLS/FOLDER/name`, `TOOLS/FOLDER/bin/name`, then the PATH."""
    places = [TOOLS / folder / inner for folder in folders for inner in (name, f"bin/{name}")]
    found = next((str(place) for place in places if os.access(place, os.X_OK)), None)
    return found or shutil.which(name)


def need_program(name: str, *folders: str, fix: str) -> str:
    """Skips the test with what would bring the program."""
    found = find_program(name, *folders)
    if found is None:
        pytest.skip(f"there is no {name} here: {fix}")
    return found


def helm(version: int = 4) -> str:
    """Raises: Skipped."""
    return need_program("helm", f"helm{version}", fix=f"make .venv-deploy/helm{version}/.installed fetches it")
