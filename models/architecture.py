"""What a decoder is made of, in one normalised form for every supported family.

Readers (`models/sources/`) produce it, the graph builder and the torch reference consume it.
Tensor names are the Hugging Face Llama names everywhere: `model.layers.0.self_attn.q_proj.weight` and so on.
"""

from typing import Literal

import msgspec

Family = Literal["llama", "qwen2", "qwen3", "mistral"]
RopeKind = Literal["default", "linear", "llama3"]


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rotary frequencies are stretched. Kinds that depend on the running length are refused by the readers."""

    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


class Architecture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pre-norm decoder with grouped-query attention, rotary positions and a SwiGLU feed-forward."""

    family: Family
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = RopeScaling()
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_qk_norm: bool = False
    has_tied_head: bool = False
    sliding_window: int | None = None

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def layer_multiply_adds(self, num_neurons: int | None = None) -> int:
        """Multiply-adds of one token in the matrices of a layer, with that many feed-forward neurons (None: all)."""
        inner = self.intermediate_size if num_neurons is None else num_neurons
        return self.hidden_size * (2 * self.q_size + 2 * self.kv_size + 3 * inner)
