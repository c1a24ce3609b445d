import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import ConfigError, WeightsError
from models.sources.huggingface import HuggingFaceSource
from models.sources.source import check_complete


def test_huggingface_source_reads_what_transformers_wrote(tiny_source: Any) -> None:
    folder = tiny_source("qwen2")
    source = HuggingFaceSource(folder)
    check_complete(source)
    for name, tensor in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(source.read(name), tensor.numpy())
    assert source.sha256() == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert source.licence == "unknown"


def test_huggingface_source_reads_shards(tiny_source: Any) -> None:
    whole = HuggingFaceSource(tiny_source("qwen3"))
    sharded = HuggingFaceSource(tiny_source("qwen3", save={"max_shard_size": "100KB"}))
    assert len(sharded.files) > 1
    assert sharded.tensor_names() == whole.tensor_names()
    for name in whole.tensor_names():
        np.testing.assert_array_equal(sharded.read(name), whole.read(name))


def test_huggingface_source_names_a_missing_shard(tiny_source: Any) -> None:
    folder = tiny_source("llama", save={"max_shard_size": "100KB"})
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(WeightsError, match=lost.name):
        HuggingFaceSource(folder)


def test_huggingface_source_follows_no_index_out_of_its_folder(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside its folder"):
        HuggingFaceSource(folder)


def test_huggingface_source_hides_copies_and_derived_buffers(tiny_source: Any) -> None:
    folder = tiny_source("llama", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors")
    check_complete(HuggingFaceSource(folder))


def test_huggingface_source_never_reads_pickles(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickled weights.*safe_serialization"):
        HuggingFaceSource(folder)


def test_huggingface_source_needs_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        HuggingFaceSource(tmp_path)


def test_huggingface_source_does_not_guess_among_files(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="2 safetensors files"):
        HuggingFaceSource(folder)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "unknown"),
        ("# Model\n", "unknown"),
    ],
)
def test_huggingface_source_states_the_licence_of_the_card(tiny_source: Any, card: str, licence: str) -> None:
    folder = tiny_source("llama")
    (folder / "README.md").write_text(card)
    assert HuggingFaceSource(folder).licence == licence


def test_huggingface_source_has_no_tensor_by_another_name(tiny_source: Any) -> None:
    with pytest.raises(WeightsError, match=r"no tensor lm_head\.bias"):
        HuggingFaceSource(tiny_source("llama")).read("lm_head.bias")
