import json
import logging
from pathlib import Path
from typing import Any

import pytest

from models.sampling import RecommendedSampling
from models.sources.generation_config import read_generation_config
from models.sources.huggingface import HuggingFaceSource

QWEN = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "transformers_version": "4.37.0",
}
"""As Qwen2.5-Instruct has it."""


def read(folder: Path, values: Any) -> RecommendedSampling | None:
    (folder / "generation_config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return read_generation_config(folder)


def test_generation_config_is_read_as_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = RecommendedSampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    assert read(tmp_path, QWEN) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"do_sample": False}, RecommendedSampling(temperature=0.0)),
        ({"do_sample": False, "temperature": 0.6}, RecommendedSampling(temperature=0.0)),
        ({"do_sample": False, "top_p": 0.9}, RecommendedSampling(temperature=0.0, top_p=0.9)),
        ({"do_sample": True}, None),
        ({"do_sample": None, "temperature": 0.6}, RecommendedSampling(temperature=0.6)),
        ({"temperature": 0.6}, RecommendedSampling(temperature=0.6)),
        ({"temperature": 1}, RecommendedSampling(temperature=1.0)),
        ({"temperature": None, "top_p": None, "top_k": 5, "min_p": None}, RecommendedSampling(top_k=5)),
        ({"min_p": 0.05, "top_k": 0}, RecommendedSampling(min_p=0.05, top_k=0)),
        ({"temperature": None}, None),
        ({"eos_token_id": 2}, None),
        ({}, None),
    ],
)
def test_generation_config_says_what_is_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: Any, expected: Any
) -> None:
    assert read(tmp_path, values) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("temperature", "0.7"),
        ("temperature", True),
        ("temperature", [0.7]),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 20.5),
        ("top_k", 2**80),
        ("min_p", -0.01),
        ("min_p", {"a": 1}),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 11),
        ("do_sample", "no"),
        ("do_sample", 0),
    ],
)
def test_generation_config_leaves_out_what_cannot_be_used_and_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    other = {"top_p": 0.9} if key != "top_p" else {"top_k": 7}
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, {key: value, **other}) == RecommendedSampling(**other)
    (record,) = caplog.records
    assert f"file={tmp_path / 'generation_config.json'} key={key} " in record.getMessage()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"temperature": NaN}', "\xff", "[" * 100_000])
def test_generation_config_that_cannot_be_read_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, text) is None
    assert str(tmp_path / "generation_config.json") in caplog.text


def test_generation_config_that_is_a_folder_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "generation_config.json").mkdir()
    assert read_generation_config(tmp_path) is None
    assert "generation_config.json" in caplog.text


def test_generation_config_may_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_generation_config(tmp_path) is None
    assert not caplog.records


def test_huggingface_source_has_the_sampling_of_its_folder(tiny_source: Any) -> None:
    folder = tiny_source("qwen2")
    assert HuggingFaceSource(folder).sampling is None
    (folder / "generation_config.json").write_text(json.dumps(QWEN))
    assert HuggingFaceSource(folder).sampling == RecommendedSampling(
        temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05
    )
