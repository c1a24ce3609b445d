"""A random model as a GGUF file: one that we and llama.cpp read."""

from pathlib import Path

import pytest

from bench import random_gguf
from models.building.blocks import serving_precisions
from models.sources.source import check_complete, open_source

SMALL = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
}


def test_the_file_in_halves_is_a_whole_model(tmp_path: Path) -> None:
    random_gguf._write_halves(tmp_path / "halves.gguf", SMALL)
    source = open_source(tmp_path / "halves.gguf")
    check_complete(source)
    assert source.architecture.rope_theta == 500_000.0
    assert source.architecture.has_tied_head
    tokenizer = source.tokenizer()
    assert tokenizer.decode(tokenizer.encode("Hello, 世界")) == "Hello, 世界"


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M"])
def test_llama_cpp_rounds_it(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("llama_cpp")
    file = tmp_path / "model.gguf"
    random_gguf.write(file, SMALL, kind)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    source = open_source(file)
    check_complete(source)
    assert serving_precisions(source, has_native=True, has_widths=False, has_head=False) == ("gguf-native",)
