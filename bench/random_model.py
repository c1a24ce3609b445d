"""`python -m bench.random_model OUT`: a Llama of about a billion random parameters as a Hugging Face folder.

For cold starts and memory of a larger model: its answers make no sense, its sizes do. Its tokenizer has one token a
byte. With `--small --tokenizer FOLDER` it is one that costs next to nothing, for what does not depend on the model: a
hundred thousand requests, say.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from models.tokenizer import SETTINGS_NAME, TOKENIZER_FILES, TOKENIZER_NAME

SIZES = {
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
"""1.04 billion parameters, like Llama 3.2 1B with a smaller vocabulary."""
SMALL_SIZES = SIZES | {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
DEVIATION = 0.02
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"


def tensors(sizes: dict[str, int], seed: int = 0) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    """Name and random values, one by one. Shapes: as Hugging Face has them, [out, in]."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float16]:
        return (rng.standard_normal((rows, columns), dtype=np.float32) * DEVIATION).astype(np.float16)

    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    kv = sizes["num_key_value_heads"] * sizes["head_dim"]
    yield "model.embed_tokens.weight", matrix(sizes["vocab_size"], hidden)
    for layer in range(sizes["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for part, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            yield f"{name}.{part}.weight", matrix(rows, columns)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", np.ones(hidden, dtype=np.float16)
    yield "model.norm.weight", np.ones(hidden, dtype=np.float16)


def write(folder: Path, sizes: dict[str, int], tokenizer: Path | None = None) -> None:
    """With `tokenizer`, a model folder, the model has that folder's tokenizer and vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    end = 256
    if tokenizer is not None:
        vocab_size, end = _vocabulary_of(tokenizer)
        sizes = sizes | {"vocab_size": vocab_size}
    save_file(dict(tensors(sizes)), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "bos_token_id": end,
        "eos_token_id": end,
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if tokenizer is None:
        _write_tokenizer(folder)
        return
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)


def _vocabulary_of(tokenizer: Path) -> tuple[int, int]:
    """How many rows its embedding needs, and the token that ends an answer."""
    ids = Tokenizer.from_file(str(tokenizer / TOKENIZER_NAME)).get_vocab(with_added_tokens=True)
    end = json.loads((tokenizer / SETTINGS_NAME).read_text())["eos_token"]
    return 1 + max(ids.values()), ids[end["content"] if isinstance(end, dict) else end]


def _write_tokenizer(folder: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "bos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.random_model", description=__doc__)
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--layers", type=int, help="default: 16, or 6 with --small")
    parser.add_argument("--small", action="store_true", help="192 wide instead of 2,048")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="a model or student folder to take it from")
    options = parser.parse_args()
    sizes = SMALL_SIZES if options.small else SIZES
    if options.layers is not None:
        sizes = sizes | {"num_hidden_layers": options.layers}
    write(options.out, sizes, options.tokenizer)


if __name__ == "__main__":
    main()
