"""The configuration that peers are given, against transformers' own reading of the same model."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from transformers import LlamaConfig

from bench.peers.llama import is_plain_llama, llama_fields
from models.sources.source import open_source


def test_fields_are_those_of_the_model_they_were_read_from(tiny_source: Callable[..., Path]) -> None:
    folder = tiny_source("llama")
    theirs = LlamaConfig.from_pretrained(folder)
    architecture = open_source(folder).architecture
    assert is_plain_llama(architecture)
    assert {name: getattr(theirs, name) for name in llama_fields(architecture)} == llama_fields(architecture)


def test_other_families_are_not_plain(tiny_source: Callable[..., Path]) -> None:
    architecture = open_source(tiny_source("llama")).architecture
    assert not is_plain_llama(msgspec.structs.replace(architecture, family="qwen3"))
