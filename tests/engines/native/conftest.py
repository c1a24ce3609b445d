"""The compiled operators, one instruction set after the other."""

from pathlib import Path

import pytest

from engines.native import build
from engines.native.build import variants
from engines.native.instructions import choose_instructions


def runs_here(variant: str) -> bool:
    return build.NEEDED[variant] <= (build.processor_flags() or frozenset())


@pytest.fixture(scope="session", params=variants())
def library(request: pytest.FixtureRequest, portable_library: Path) -> Path:
    """The library of all instruction sets, each chosen in turn: those it would not choose here are tested too."""
    variant: str = request.param
    if not runs_here(variant):
        pytest.skip(f"this processor has no {variant}")
    choose_instructions(portable_library, variant)
    return portable_library
