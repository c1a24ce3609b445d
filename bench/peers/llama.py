"""A plain Llama in the words of Hugging Face's configuration, for peers that take the model from us."""

from typing import Any

from models.architecture import Architecture


def is_plain_llama(architecture: Architecture) -> bool:
    """Whether it is a Llama without stretched rotary positions: others are not converted for peers."""
    return architecture.family == "llama" and architecture.rope_scaling.kind == "default"


def llama_fields(architecture: Architecture) -> dict[str, Any]:
    return {
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "max_position_embeddings": architecture.max_context_tokens,
        "rms_norm_eps": architecture.norm_eps,
        "attention_bias": architecture.has_qkv_bias,
        "tie_word_embeddings": architecture.has_tied_head,
    }
