"""`fenhe loadtest ...`: becomes `python -m loadtest`, which knows servers by HTTP alone and nothing of this package."""

import os
import sys
from importlib.util import find_spec

from models.errors import ConfigError

PACKAGE = "loadtest"
NEEDED = ("locust", "httpx", "matplotlib")


def run(arguments: list[str]) -> int:
    """Raises: ConfigError when a command is named and the packages of the extra are missing. Does not return
    otherwise."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing and not all(argument.startswith("-") for argument in arguments):
        raise ConfigError(f"`fenhe loadtest` needs {', '.join(missing)}", "pip install 'fenhe[loadtest]'")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", PACKAGE, *arguments])
