"""The compiled operators, one instruction set after the other."""

from pathlib import Path

import pytest
from filelock import FileLock

from engines.native import build
from engines.native.build import BuildError, build_library, variants


def runs_here(variant: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if variant != "generic" else ""
    needed = {
        "generic": (),
        "avx2": ("avx2", "fma", "f16c"),
        "avx512": ("avx512bw", "avx512dq", "avx512vl"),
        "vnni": ("avx512_vnni",),
    }
    return all(flag in flags for flag in needed[variant])


@pytest.fixture(scope="session", params=variants())
def library(request: pytest.FixtureRequest, operators_folder: Path) -> Path:
    """Each variant alone, so that those this machine would not choose are tested too."""
    variant: str = request.param
    if not runs_here(variant):
        pytest.skip(f"this processor has no {variant}")
    made = operators_folder / f"{variant}-{build.library_name()}"
    try:
        with FileLock(f"{made}.lock"):
            return made if made.is_file() else build_library(operators_folder, only=variant)
    except BuildError as error:
        pytest.skip(str(error))
