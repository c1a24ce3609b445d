"""A tiny student with room for the long prompts of the soak."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.building.build import build_student


@pytest.fixture
def student(tiny_source: Callable[..., Path], tmp_path: Path) -> Path:
    build_student(tiny_source("llama", max_position_embeddings=8192), tmp_path / "student", precisions=("fp32",))
    return tmp_path / "student"
