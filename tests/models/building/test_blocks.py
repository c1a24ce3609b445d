"""Which precision a GGUF file is built in where nobody says, and what `gguf-native` refuses or rounds."""

import logging
from typing import Any

import pytest

from models.building.blocks import serving_precisions
from models.building.build import build_student
from models.errors import ConfigError
from models.graphs.precisions import DEFAULT_PRECISIONS
from models.sources.source import open_source

NAME = "gguf-native"


def chosen(source: Any, **without: bool) -> tuple[str, ...]:
    options = {"has_native": True, "has_widths": False, "has_head": False} | without
    return serving_precisions(open_source(source), **options)


def test_a_gguf_file_is_served_in_its_own_blocks(tiny_source: Any, tiny_gguf: Any) -> None:
    folder = tiny_source("llama")
    file = tiny_gguf(folder, quantisation="Q4_0")
    assert chosen(file) == (NAME,)
    assert chosen(file, has_native=False) == DEFAULT_PRECISIONS
    assert chosen(file, has_widths=True) == DEFAULT_PRECISIONS
    assert chosen(file, has_head=True) == DEFAULT_PRECISIONS
    assert chosen(folder) == DEFAULT_PRECISIONS
    assert chosen(tiny_gguf(folder, quantisation="F16")) == DEFAULT_PRECISIONS


def test_matrices_of_other_kinds_are_rounded_with_a_warning(
    tiny_source: Any, tiny_gguf: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = tiny_gguf(tiny_source("llama"), quantisation="F16")
    with caplog.at_level(logging.WARNING):
        build_student(file, tmp_path / "student", precisions=(NAME,))
    # Seven matrices in each of four layers, and the head.
    assert f"matrices rounded to 8 bits source={file} kinds='29 of F16'" in caplog.text


def test_matrices_in_blocks_are_kept_without_a_word(
    tiny_source: Any, tiny_gguf: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build_student(tiny_gguf(tiny_source("llama"), quantisation="Q8_0"), tmp_path / "student", precisions=(NAME,))
    assert not caplog.records


@pytest.mark.parametrize(("kind", "kinds"), [("Q5_1", "'29 of Q5_1'"), ("BF16", None), ("Q4_0", None)])
def test_blocks_that_nothing_multiplies_are_rounded_again_with_a_warning(
    tiny_source: Any, tiny_gguf: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture, kind: str, kinds: str | None
) -> None:
    file = tiny_gguf(tiny_source("llama"), quantisation=kind)
    with caplog.at_level(logging.WARNING):
        build_student(file, tmp_path / "student", precisions=("w8a8",))
    told = f"matrices rounded again source={file} kinds={kinds} precisions=w8a8"
    assert (told in caplog.text) == bool(kinds)
    assert bool(caplog.records) == bool(kinds)


def test_a_folder_has_no_blocks(tiny_source: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"--precision gguf-native: it keeps the blocks of a GGUF file.*w8a8-native"):
        build_student(tiny_source("llama"), tmp_path / "student", precisions=(NAME,))
    assert not list(tmp_path.glob("student*"))


def test_rows_that_blocks_do_not_fill_are_refused_by_name(tiny_source: Any, tiny_gguf: Any, tmp_path: Any) -> None:
    file = tiny_gguf(tiny_source("llama", intermediate_size=80), quantisation="F16")
    with pytest.raises(ConfigError, match=r"down_proj.weight has rows of 80, which blocks of 32 do not fill"):
        build_student(file, tmp_path / "student", precisions=(NAME,))
