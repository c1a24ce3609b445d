"""A student of random weights, large enough to be bound by memory as real ones are; what it says means nothing."""

import json
from pathlib import Path

import numpy as np

from models.architecture import Architecture
from models.building.build import build_student
from models.sources.source import expected_shapes
from models.student.hugging_face_folder import hugging_face_config

VOCAB_SIZE = 32_000
MODULES = "knowledge:10,reasoning:14,adapter:8"


def random_architecture() -> Architecture:
    """Half a billion parameters and a little more."""
    return Architecture(
        family="llama",
        num_layers=32,
        hidden_size=1024,
        intermediate_size=4096,
        num_heads=16,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=VOCAB_SIZE,
        max_context_tokens=2048,
        norm_eps=1e-5,
        rope_theta=1e4,
    )


def num_parameters(architecture: Architecture) -> int:
    return sum(int(np.prod(shape)) for shape in expected_shapes(architecture).values())


def build_random_student(folder: Path) -> Path:
    """A student in fp32 with paths of three depths, beneath `folder`; returns its own folder."""
    architecture, source = random_architecture(), folder / "random"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(hugging_face_config(architecture)))
    _write_tokenizer(source)
    _write_weights(architecture, source / "model.safetensors")
    build_student(source, folder / "random-student", name="random", modules=MODULES, precisions=("fp32",))
    (source / "model.safetensors").unlink()
    return folder / "random-student"


def _write_weights(architecture: Architecture, file: Path) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in expected_shapes(architecture).items():
        if name.endswith("norm.weight"):
            tensors[name] = np.ones(shape, np.float32)
        else:
            tensors[name] = random.standard_normal(shape, np.float32) * np.float32(0.02)
    save_file(tensors, file)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: id for id, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
