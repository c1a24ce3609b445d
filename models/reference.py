"""The decoder in plain torch at fp32: the numbers that every graph is compared with, and a slow
teacher for small distillation runs.

Tensor names carry shapes: T positions of this call, S positions with the cache, H hidden, V vocabulary,
N heads, K key heads, D head size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError
from models.rope import inverse_frequencies
from models.sources.source import ModelSource, check_complete, expected_shapes

try:
    import torch
    from torch import Tensor
    from torch.nn.functional import embedding, linear, rms_norm, silu
except ImportError as error:
    raise ConfigError("the numeric reference needs torch; install it with `pip install 'fenhe[dev]'`") from error

NOTHING: Mapping[str, npt.NDArray[np.float32]] = MappingProxyType({})


@dataclass(slots=True, kw_only=True)
class KvCache:
    """Keys and values of the positions already computed, by layer. Shapes: [K, S, D]."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def num_tokens(self, layer: int) -> int:
        return self.keys[layer].shape[1] if layer in self.keys else 0

    def extend(self, layer: int, keys_KTD: Tensor, values_KTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append this call's positions; returns those of all calls. Shapes: [K, T, D] in, [K, S, D] out."""
        if layer in self.keys:
            keys_KTD = torch.cat((self.keys[layer], keys_KTD), dim=1)
            values_KTD = torch.cat((self.values[layer], values_KTD), dim=1)
        self.keys[layer], self.values[layer] = keys_KTD, values_KTD
        return keys_KTD, values_KTD


class ReferenceDecoder:
    """All weights in memory at fp32, one sequence at a time.

    `changed` tensors take the place of the source's, such as those of a width (`WidthFile.narrow_tensors`).
    """

    def __init__(self, source: ModelSource, changed: Mapping[str, npt.NDArray[np.float32]] = NOTHING) -> None:
        """Raises: WeightsError for an incomplete model."""
        check_complete(source)
        self.architecture = source.architecture
        self._weights = {
            name: torch.from_numpy(changed[name] if name in changed else source.read(name))
            for name in expected_shapes(source.architecture)
        }
        self._frequencies = torch.from_numpy(inverse_frequencies(source.architecture))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Shapes: returns [T, H]."""
        return embedding(torch.tensor(list(ids)), self._weights["model.embed_tokens.weight"])

    @torch.inference_mode()
    def layers(self, hidden_TH: Tensor, first: int, count: int, cache: KvCache | None = None) -> Tensor:
        """Run `count` layers from layer `first`. With a cache the positions follow those in it.

        Shapes: [T, H] in and out.
        """
        for layer in range(first, first + count):
            hidden_TH = self._layer(hidden_TH, layer, cache or KvCache())
        return hidden_TH

    @torch.inference_mode()
    def logits(self, hidden_TH: Tensor) -> Tensor:
        """The final norm and the head. Shapes: returns [T, V]."""
        head = "model.embed_tokens.weight" if self.architecture.has_tied_head else "lm_head.weight"
        return linear(self._norm(hidden_TH, "model.norm"), self._weights[head])

    def forward(self, ids: Sequence[int]) -> Tensor:
        """Shapes: returns [T, V]."""
        return self.logits(self.layers(self.embed(ids), 0, self.architecture.num_layers))

    def generate_greedy(self, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The likeliest continuation, `num_tokens` long; it does not stop at end tokens."""
        cache, ids, generated = KvCache(), list(prompt_ids), list[int]()
        for _ in range(num_tokens):
            hidden_TH = self.layers(self.embed(ids), 0, self.architecture.num_layers, cache)
            ids = [int(self.logits(hidden_TH[-1:]).argmax())]
            generated += ids
        return generated

    def _layer(self, hidden_TH: Tensor, layer: int, cache: KvCache) -> Tensor:
        prefix = f"model.layers.{layer}"
        attended_TH = self._attention(self._norm(hidden_TH, f"{prefix}.input_layernorm"), layer, cache)
        hidden_TH = hidden_TH + attended_TH
        normed_TH = self._norm(hidden_TH, f"{prefix}.post_attention_layernorm")
        gate = silu(self._project(normed_TH, f"{prefix}.mlp.gate_proj"))
        up = self._project(normed_TH, f"{prefix}.mlp.up_proj")
        return hidden_TH + self._project(gate * up, f"{prefix}.mlp.down_proj")

    def _attention(self, normed_TH: Tensor, layer: int, cache: KvCache) -> Tensor:
        prefix = f"model.layers.{layer}.self_attn"
        start, num_tokens = cache.num_tokens(layer), normed_TH.shape[0]
        queries_NTD = self._heads(normed_TH, f"{prefix}.q")
        keys_KTD = self._heads(normed_TH, f"{prefix}.k")
        values_TKD = self._project(normed_TH, f"{prefix}.v_proj").reshape(num_tokens, -1, self.architecture.head_dim)
        positions_T = torch.arange(start, start + num_tokens)
        keys_KSD, values_KSD = cache.extend(layer, self._rotate(keys_KTD, positions_T), values_TKD.transpose(0, 1))
        group = self.architecture.num_heads // self.architecture.num_kv_heads
        keys_NSD, values_NSD = (tensor.repeat_interleave(group, dim=0) for tensor in (keys_KSD, values_KSD))
        scores_NTS = self._rotate(queries_NTD, positions_T) @ keys_NSD.transpose(1, 2)
        scores_NTS = scores_NTS * self.architecture.head_dim**-0.5 + self._mask(positions_T, keys_NSD.shape[1])
        mixed_NTD = scores_NTS.softmax(dim=-1) @ values_NSD
        return self._project(mixed_NTD.transpose(0, 1).flatten(1), f"{prefix}.o_proj")

    def _heads(self, normed_TH: Tensor, prefix: str) -> Tensor:
        """Queries or keys, normalised where the family does that. Shapes: returns [heads, T, D]."""
        heads = self._project(normed_TH, f"{prefix}_proj")
        heads = heads.reshape(len(normed_TH), -1, self.architecture.head_dim)
        if self.architecture.has_qk_norm:
            heads = self._norm(heads, f"{prefix}_norm")
        return heads.transpose(0, 1)

    def _rotate(self, heads: Tensor, positions_T: Tensor) -> Tensor:
        """Turn channel pairs (i, i + D/2) by their position's angle. Shapes: [heads, T, D] in and out."""
        angles = positions_T[:, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        first, second = heads.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def _mask(self, positions_T: Tensor, num_keys: int) -> Tensor:
        """0 where a position may look, minus infinity elsewhere. Shapes: returns [T, S]."""
        distance_TS = positions_T[:, None] - torch.arange(num_keys)
        is_hidden_TS = distance_TS < 0
        if self.architecture.sliding_window is not None:
            is_hidden_TS |= distance_TS >= self.architecture.sliding_window
        return torch.zeros(distance_TS.shape).masked_fill(is_hidden_TS, float("-inf"))

    def _norm(self, values: Tensor, name: str) -> Tensor:
        return rms_norm(values, values.shape[-1:], self._weights[f"{name}.weight"], self.architecture.norm_eps)

    def _project(self, values: Tensor, name: str) -> Tensor:
        return linear(values, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))
