"""A student that a command is given by its folder, or by the name of the default student."""

import os
import sys
from pathlib import Path

DEFAULT = "smollm2-135m"
HELP = f"a student's folder, or {DEFAULT} for the default student"


def folder_of(name: str) -> Path:
    """The default student is made where it is not there yet, with progress on standard error.

    Raises: ConfigError where it cannot be made.
    """
    from models.building.default_student import find_student

    if name != DEFAULT or Path(name).exists():
        return Path(name)
    return find_student(os.environ, lambda line: print(line, file=sys.stderr))
