"""Decoder layers in torch that can be trained: the frozen trunk and the blocks copied from it.

Batched and in any float type, unlike `models.reference`, which computes one sequence in fp32. Tensor names carry
shapes: B sequences, T positions, H hidden, V vocabulary, N heads, K key heads, D head size, L layers.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from models.architecture import Architecture
from models.rope import inverse_frequencies
from models.sources.source import ModelSource

FINAL_NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Rope:
    """Cosines and sines of the positions 0 .. length - 1, made once per length and type."""

    def __init__(self, architecture: Architecture, device: torch.device) -> None:
        self._frequencies = torch.from_numpy(inverse_frequencies(architecture)).to(device)
        self._tables: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self._frequencies.device

    def tables(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Shapes: two of [T, D / 2]."""
        found = self._tables.get((length, dtype))
        if found is None:
            angles = torch.arange(length, device=self._frequencies.device)[:, None] * self._frequencies
            found = self._tables[length, dtype] = (angles.cos().to(dtype), angles.sin().to(dtype))
        return found


class DecoderLayer(nn.Module):
    """One layer. Its parameters are named as in the Hugging Face files, with `__` for `.`."""

    def __init__(self, architecture: Architecture, rope: Rope, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.architecture = architecture
        self._rope = rope
        for name, value in weights.items():
            self.register_parameter(parameter_name(name), nn.Parameter(value))

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Every position sees itself and those before it; padding belongs at the end. Shapes: [B, T, H] in and out."""
        hidden_BTH = self.attended(hidden_BTH)
        return hidden_BTH + self.down(self.gated(hidden_BTH))

    def attended(self, hidden_BTH: Tensor) -> Tensor:
        """The hidden state with what attention adds. Shapes: [B, T, H] in and out."""
        return hidden_BTH + self._project(self.mixed(hidden_BTH), "self_attn.o_proj")

    def gated(self, attended_BTH: Tensor) -> Tensor:
        """What the feed-forward neurons say, which `down_proj` reads. Shapes: [B, T, H] to [B, T, neurons]."""
        normed_BTH = self.feed_forward_norm(attended_BTH)
        return silu(self._project(normed_BTH, "mlp.gate_proj")) * self._project(normed_BTH, "mlp.up_proj")

    def feed_forward_norm(self, attended_BTH: Tensor) -> Tensor:
        """Shapes: [B, T, H] in and out."""
        return self._norm(attended_BTH, "post_attention_layernorm")

    def down(self, gated_BTI: Tensor) -> Tensor:
        """What the feed-forward half adds to the hidden state. Shapes: [B, T, neurons] to [B, T, H]."""
        return self._project(gated_BTI, "mlp.down_proj")

    def attention_maps(self, hidden_BTH: Tensor) -> Tensor:
        """Attention probabilities for the layer's input. Shapes: returns [B, N, T, T]."""
        queries, keys, _ = self._heads(self._norm(hidden_BTH, "input_layernorm"))
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        scores = (queries @ keys.transpose(2, 3)).float() * self.architecture.head_dim**-0.5
        hidden_places = ~self._visible(hidden_BTH.shape[1])
        return torch.softmax(scores.masked_fill(hidden_places, float("-inf")), dim=-1)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names as in the Hugging Face files, below `model.layers.N.`, with their values. Shapes: [out, in], [out]."""
        for name, value in self.named_parameters():
            yield tensor_name(name), value.detach()

    def mixed(self, hidden_BTH: Tensor) -> Tensor:
        """What attention reads from earlier positions, head by head. Shapes: [B, T, H] to [B, T, N * D]."""
        queries, keys, values = self._heads(self._norm(hidden_BTH, "input_layernorm"))
        window = self.architecture.sliding_window
        length = hidden_BTH.shape[1]
        mask = self._visible(length) if window is not None and window < length else None
        mixed = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, normed_BTH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: [B, N, T, D], [B, K, T, D] twice."""
        queries, keys, values = (self._split(normed_BTH, f"self_attn.{part}") for part in "qkv")
        return self._turn(queries), self._turn(keys), values

    def _split(self, normed_BTH: Tensor, prefix: str) -> Tensor:
        heads = self._project(normed_BTH, f"{prefix}_proj")
        heads = heads.reshape(*heads.shape[:2], -1, self.architecture.head_dim)
        if self.architecture.has_qk_norm and not prefix.endswith("v"):
            heads = self._norm(heads, f"{prefix}_norm")
        return heads.transpose(1, 2)

    def _turn(self, heads: Tensor) -> Tensor:
        cos, sin = self._rope.tables(heads.shape[2], heads.dtype)
        first, second = heads.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def _visible(self, length: int) -> Tensor:
        """Shapes: returns [T, T]; True where a position may look."""
        positions = torch.arange(length, device=self._rope.device)
        distance = positions[:, None] - positions
        visible = distance >= 0
        if self.architecture.sliding_window is not None:
            visible &= distance < self.architecture.sliding_window
        return visible

    def _norm(self, values: Tensor, name: str) -> Tensor:
        weight = self._parameter(f"{name}.weight")
        return rms_norm(values, values.shape[-1:], weight.to(values.dtype), self.architecture.norm_eps)

    def _project(self, values: Tensor, name: str) -> Tensor:
        bias = self.bias(name)
        weight = self._parameter(f"{name}.weight").to(values.dtype)
        return linear(values, weight, None if bias is None else bias.to(values.dtype))

    def bias(self, name: str) -> Tensor | None:
        """The bias of a projection, such as `mlp.down_proj`; None where the model has none."""
        return self._parameters.get(parameter_name(f"{name}.bias"))

    def _parameter(self, name: str) -> Tensor:
        return self.get_parameter(parameter_name(name))


class Trunk:
    """A model's frozen layers, final norm and head, in one float type."""

    def __init__(
        self, source: ModelSource, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.architecture = source.architecture
        self.device = torch.device(device)
        self.rope = Rope(source.architecture, self.device)
        self.dtype = dtype
        self._source = source
        self.embedding_VH = self._read(EMBEDDING)
        self.head_VH = self.embedding_VH if source.architecture.has_tied_head else self._read(HEAD)
        self.norm_H = self._read(FINAL_NORM)
        self._layers: dict[int, DecoderLayer] = {}

    def layer(self, index: int) -> DecoderLayer:
        """The frozen layer `index`, read when it is first asked for."""
        if index not in self._layers:
            self._layers[index] = self.copy_of(index, self.dtype).requires_grad_(False)
        return self._layers[index]

    def copy_of(self, index: int, dtype: torch.dtype = torch.float32) -> DecoderLayer:
        """A new, trainable layer with the weights of layer `index`."""
        prefix = f"model.layers.{index}."
        names = [name for name in self._source.tensor_names() if name.startswith(prefix)]
        weights = {name.removeprefix(prefix): self._read(name, dtype) for name in sorted(names)}
        return DecoderLayer(self.architecture, self.rope, weights)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Shapes: returns [B, T, H]."""
        return self.embedding_VH[ids_BT]

    def run(self, hidden_BTH: Tensor, layers: Iterable[int]) -> Tensor:
        """Shapes: [B, T, H] in and out."""
        for index in layers:
            hidden_BTH = self.layer(index)(hidden_BTH)
        return hidden_BTH

    def norm(self, hidden: Tensor) -> Tensor:
        """The final norm. Shapes: [..., H] in and out."""
        return rms_norm(hidden, hidden.shape[-1:], self.norm_H.to(hidden.dtype), self.architecture.norm_eps)

    def logits(self, normed: Tensor) -> Tensor:
        """Shapes: [..., H] to [..., V]."""
        return linear(normed, self.head_VH.to(normed.dtype))

    def _read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(self._source.read(name)).to(self.device, dtype or self.dtype)


def parameter_name(tensor: str) -> str:
    return tensor.replace(".", "__")


def tensor_name(parameter: str) -> str:
    return parameter.replace("__", ".")


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids side by side, zeros behind the shorter ones, and where the real ones are. Shapes: two of [B, T]."""
    length = max(len(row) for row in rows)
    ids_BT = torch.zeros((len(rows), length), dtype=torch.long)
    is_real_BT = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        is_real_BT[index, : len(row)] = True
    return ids_BT, is_real_BT
