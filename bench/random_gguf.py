"""`python -m bench.random_gguf FILE`: the model of `bench.random_model` as a 4-bit GGUF file, rounded by llama.cpp.

For figures of a larger model: its answers make no sense, its sizes do. Writes a file in halves beside it first, which
goes again.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

from bench.random_model import SIZES, TEMPLATE, tensors

KINDS = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18}
"""Numbers of llama.cpp's file types (`LLAMA_FTYPE_MOSTLY_*`)."""
NORMAL, CONTROL, UNUSED = 1, 3, 5
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(file: Path, sizes: dict[str, int], kind: str) -> None:
    """Raises: RuntimeError where llama.cpp cannot round the model."""
    halves = file.with_name(f".{file.name}.f16")
    try:
        _write_halves(halves, sizes)
        _round(halves, file, KINDS[kind])
    finally:
        halves.unlink(missing_ok=True)


def _write_halves(file: Path, sizes: dict[str, int]) -> None:
    writer = GGUFWriter(file, "llama", use_temp_file=True)
    _write_metadata(writer, sizes)
    _write_vocabulary(writer, sizes["vocab_size"])
    for name, values in tensors(sizes):
        writer.add_tensor(gguf_name(name), values if values.ndim == 2 else values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Query and key rows stay in the order they have: they are random."""
    match name.split("."):
        case ["model", "embed_tokens", kind]:
            return f"token_embd.{kind}"
        case ["model", "norm", kind]:
            return f"output_norm.{kind}"
        case ["model", "layers", layer, *part, kind]:
            return f"blk.{layer}.{PARTS['.'.join(part)]}.{kind}"
    raise KeyError(name)


def _write_metadata(writer: Any, sizes: dict[str, int]) -> None:
    writer.add_name("random")
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_rope_dimension_count(sizes["head_dim"])
    writer.add_vocab_size(sizes["vocab_size"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)


def _write_vocabulary(writer: Any, size: int) -> None:
    """A token a byte, an end, one merge because there must be some, and names for the rest."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*letters, "<|end|>", letters[0] + letters[1]]
    kinds = [NORMAL] * len(letters) + [CONTROL, NORMAL] + [UNUSED] * (size - len(known))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*known, *(f"[unused {number}]" for number in range(len(known), size))])
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(len(letters))
    writer.add_eos_token_id(len(letters))
    writer.add_chat_template(TEMPLATE)


def _round(halves: Path, file: Path, kind: int) -> None:
    import llama_cpp

    api: Any = llama_cpp.llama_cpp
    silent = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(silent, None)
    options = api.llama_model_quantize_default_params()
    options.ftype = kind
    if api.llama_model_quantize(str(halves).encode(), str(file).encode(), options) != 0:
        raise RuntimeError(f"llama.cpp could not round {halves}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.random_gguf", description=__doc__)
    parser.add_argument("out", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--kind", choices=KINDS, default="Q4_0", help="default: %(default)s")
    parser.add_argument("--layers", type=int, default=SIZES["num_hidden_layers"], help="default: %(default)s")
    options = parser.parse_args()
    write(options.out, SIZES | {"num_hidden_layers": options.layers}, options.kind)


if __name__ == "__main__":
    main()
