import contextlib
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models.sources.gguf_header
from models.errors import ConfigError, ServingError, WeightsError
from models.sources.gguf_header import read_header


@pytest.fixture
def tiny_bytes(tiny_source: Any, tiny_gguf: Any) -> bytes:
    whole: bytes = tiny_gguf(tiny_source("llama")).read_bytes()
    return whole


def test_header_reads_what_the_writer_wrote(tiny_source: Any, tiny_gguf: Any) -> None:
    file = tiny_gguf(tiny_source("llama"), metadata={"some.text": "ü", "some.flag": False, "some.number": 0.5})
    header = read_header(file)
    assert header.require("some.text", str) == "ü"
    assert header.require("some.flag", bool) is False
    assert header.require("some.number", float) == 0.5
    assert header.require("tokenizer.ggml.token_type", list)[:4] == [3, 3, 3, 1]
    assert header.tensors["blk.0.ffn_up.weight"].shape == (96, 64)


def test_header_names_missing_and_wrong_metadata(tiny_source: Any, tiny_gguf: Any) -> None:
    header = read_header(tiny_gguf(tiny_source("llama")))
    with pytest.raises(WeightsError, match=r"metadata general\.nothing is missing"):
        header.require("general.nothing", str)
    with pytest.raises(WeightsError, match=r"llama\.block_count is int, not str"):
        header.require("llama.block_count", str)


def test_header_of_a_truncated_file_is_refused(tmp_path: Path, tiny_bytes: bytes) -> None:
    file = tmp_path / "cut.gguf"
    for num_bytes in [*range(0, 4000, 7), len(tiny_bytes) // 2, len(tiny_bytes) - 1]:
        file.write_bytes(tiny_bytes[:num_bytes])
        with pytest.raises(WeightsError, match=r"cut\.gguf"):
            read_header(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 12_000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_header_of_a_damaged_file_never_escapes_the_error_tree(
    tmp_path: Path, tiny_bytes: bytes, changes: list[tuple[int, bytes]]
) -> None:
    damaged = bytearray(tiny_bytes)
    for offset, junk in changes:
        damaged[offset : offset + len(junk)] = junk
    file = tmp_path / "damaged.gguf"
    file.write_bytes(damaged)
    with contextlib.suppress(ServingError):
        read_header(file)


def test_header_with_an_endless_array_is_refused_at_once(tmp_path: Path) -> None:
    key = b"some.list"
    value = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 5, 1 << 60)
    file = tmp_path / "endless.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + value)
    with pytest.raises(WeightsError, match="damaged or cut short"):
        read_header(file)


@pytest.mark.parametrize(("version", "words"), [(1, "version 1"), (3 << 24, "big-endian")])
def test_header_of_another_version_is_refused(tmp_path: Path, version: int, words: str) -> None:
    file = tmp_path / "old.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    with pytest.raises(ConfigError, match=words):
        read_header(file)


def test_header_of_a_file_that_is_cut_while_it_is_read_is_refused(
    tmp_path: Path, tiny_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is mapped, or the process would end."""
    file = tmp_path / "a.gguf"
    file.write_bytes(tiny_bytes)
    real = models.sources.gguf_header._value

    def value(*arguments: Any) -> Any:
        os.truncate(file, 100)
        return real(*arguments)

    monkeypatch.setattr(models.sources.gguf_header, "_value", value)
    with pytest.raises(WeightsError, match=r"a\.gguf is damaged or cut short"):
        read_header(file)


def test_header_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK" + bytes(100))
    with pytest.raises(WeightsError, match="not a GGUF file"):
        read_header(tmp_path / "a.gguf")
