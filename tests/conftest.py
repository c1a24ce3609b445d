"""Fixtures shared by all folders: tiny random models in both file formats, and the real default student.

Tiny models have 4 layers, hidden size 64 and a byte-level vocabulary of 320 tokens; every weight is random,
also biases and norms, so that a reader that drops one is found out.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before numpy and torch are imported: two threads that wait for each other on one free core take many times as long as
# one alone, and a parallel run keeps every core busy with tests of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from filelock import FileLock

from models.errors import ConfigError
from models.sources.fetch import cache_folder, pull
from models.sources.source import open_source
from tests.models.greedy_text import greedy_tokens

if importlib.util.find_spec("hypothesis") is not None:  # vLLM's environment has none
    import hypothesis

    # No test is timed: what takes long on a busy machine is not wrong.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")

TinySource = Callable[..., Path]

VOCAB_SIZE = 320
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRAINING_TEXT = "the quick brown fox jumps over the lazy dog 0123456789 and then the other foxes jump over it too. " * 4
TRAINING_TEXT += "a modular student answers every request through only the part of the model that it needs. " * 4

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
_FAMILY_SIZES: dict[str, dict[str, Any]] = {"qwen3": {"head_dim": 32}, "mistral": {"sliding_window": None}}


@pytest.fixture(scope="session")
def tiny_tokenizer_json() -> str:
    """A real byte-level BPE tokenizer of `VOCAB_SIZE` tokens, as the text of its tokenizer.json."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer.to_str()


@pytest.fixture
def tiny_source(tmp_path: Path, tiny_tokenizer_json: str) -> TinySource:
    """`tiny_source(family, **config)` writes a Hugging Face folder and returns it."""

    def make(family: str, *, save: dict[str, Any] | None = None, **config: Any) -> Path:
        folder = tmp_path / f"tiny-{family}-{len(list(tmp_path.iterdir()))}"
        model = tiny_model(family, **config)
        model.save_pretrained(folder, **(save or {}))
        (folder / "tokenizer.json").write_text(tiny_tokenizer_json)
        settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


def tiny_model(family: str, **config: Any) -> Any:
    """A transformers model of the family with every parameter random, the same at every call."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    model = make(AutoConfig.for_model(family, **(_SIZES | _FAMILY_SIZES.get(family, {}) | config)), dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name else 0.0
        parameter.data = offset + 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def tiny_gguf(tmp_path: Path, tiny_tokenizer_json: str) -> Callable[..., Path]:
    """`tiny_gguf(folder, ...)` writes the model of a Hugging Face folder as llama.cpp's converter would."""

    def make(folder: Path, **options: Any) -> Path:
        file = tmp_path / f"{folder.name}-{len(list(tmp_path.iterdir()))}.gguf"
        write_gguf(folder, file, json.loads(tiny_tokenizer_json), **options)
        return file

    return make


def write_gguf(
    folder: Path,
    file: Path,
    tokenizer: dict[str, Any],
    *,
    quantisation: str = "F32",
    metadata: dict[str, Any] | None = None,
    extra_tensors: dict[str, Any] | None = None,
    pre: str = "gpt-2",
) -> None:
    """Independent of `models.sources.gguf`: the converter's steps, in their own words."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    writer = GGUFWriter(file, arch)
    _write_metadata(writer, config, metadata or {})
    _write_vocabulary(writer, tokenizer, pre)
    for name, original in load_file(folder / "model.safetensors").items():
        tensor = _permuted(name, original, config) if arch == "llama" else original
        kind = GGMLQuantizationType[quantisation if tensor.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name), quantize(tensor, kind), raw_dtype=kind)
    for name, tensor in (extra_tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(name: str, tensor: Any, config: dict[str, Any]) -> Any:
    if ".q_proj." not in name and ".k_proj." not in name:
        return tensor
    heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))


def gguf_name(name: str) -> str:
    """The name llama.cpp gives a Hugging Face tensor."""
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ):
        name = name.replace(ours, theirs)
    return name


def _write_metadata(writer: Any, config: dict[str, Any], extra: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writers = {
        str: writer.add_string,
        int: writer.add_uint32,
        float: writer.add_float32,
        bool: writer.add_bool,
    }
    for key, value in extra.items():
        writers[type(value)](key, value)


def _write_vocabulary(writer: Any, tokenizer: dict[str, Any], pre: str) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a run: what is made in it under a lock is made once."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def default_greedy_tokens(default_gguf: Path, shared_folder: Path) -> dict[str, list[int]]:
    """By prompt, the tokens transformers finds likeliest, one after the other, with the default student's weights."""
    file = shared_folder / "greedy.json"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            file.write_text(json.dumps(greedy_tokens(open_source(default_gguf))))
    tokens: dict[str, list[int]] = json.loads(file.read_text())
    return tokens


@pytest.fixture(scope="session")
def default_gguf() -> Path:
    """The default student's GGUF from the cache, fetched when it is not there; skips where it cannot be."""
    try:
        return pull("smollm2-135m", cache_folder(os.environ), show_progress=False)
    except ConfigError as error:
        pytest.skip(f"the default student is not in the cache and cannot be fetched: {error}")


@pytest.fixture(scope="session")
def operators_folder(shared_folder: Path) -> Path:
    """Where a run compiles fenhe's own operators: empty when it begins, the same for all its processes."""
    folder = shared_folder / "operators"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def portable_library(operators_folder: Path) -> Path:
    """The operators for every processor of this kind, as a wheel has them; skips where they cannot be compiled."""
    from engines.native.build import BuildError, build_library, library_name

    folder = operators_folder / "portable"
    made = folder / library_name()
    try:
        with FileLock(operators_folder / "portable.lock"):
            return made if made.is_file() else build_library(folder)
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def native_library(operators_folder: Path) -> Path:
    """fenhe's own operators; skips where they cannot be compiled."""
    from engines.native import library_path

    with FileLock(operators_folder / "all.lock"):
        library = library_path(operators_folder)
    if library is None:
        pytest.skip("fenhe's own operators cannot be compiled here")
    return library
