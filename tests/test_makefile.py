"""`make serve`, without running it."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def recipe(*arguments: str) -> str:
    """What make would run."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    environ = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([make, "-n", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_serve_takes_another_port() -> None:
    assert recipe("serve", "PORT=8001").rstrip().endswith("fenhe serve --port 8001")
    assert recipe("serve").rstrip().endswith("fenhe serve")


def test_make_help_tells_of_the_port() -> None:
    assert "make serve PORT=8001" in recipe("help")
