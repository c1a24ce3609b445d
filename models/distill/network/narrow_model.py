"""A frozen model whose layers can run at several widths, with what makes up for the missing neurons trained.

Tensor names carry shapes: B sequences, T positions, H hidden, A all attention heads' outputs side by side,
I neurons in their order, K those of a width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from models.distill.network.decoder import DecoderLayer, Trunk

Neurons = tuple[int, ...]
"""How many neurons each layer keeps."""


@dataclass(slots=True, kw_only=True, frozen=True)
class LayerStart:
    """What a layer's training starts from: its order of neurons, per width its own `down_proj` [H, K], and the widths'
    own `o_proj` [H, A] (None: the model's).
    """

    order_I: Tensor
    down_HK: Mapping[str, Tensor]
    output_HA: Tensor | None = None


class NarrowLayer(nn.Module):
    """A frozen layer at several widths. One change of `down_proj` serves all widths (a narrower one takes its first
    columns), and one of `o_proj`; both are trained, and begin at zero.
    """

    def __init__(self, layer: DecoderLayer, start: LayerStart, trains_output: bool) -> None:
        super().__init__()
        self._layer = (layer,)  # not a submodule: its weights are no parameters of this one
        dtype = layer.get_parameter("mlp__gate_proj__weight").dtype
        self.order_I = order_I = start.order_I
        self.gate_IH = layer.get_parameter("mlp__gate_proj__weight").detach()[order_I].contiguous()
        self.up_IH = layer.get_parameter("mlp__up_proj__weight").detach()[order_I].contiguous()
        self.start = {name: value.to(self.gate_IH.device) for name, value in start.down_HK.items()}
        widest = max(value.shape[1] for value in self.start.values())
        own_HA = self.own_output()
        self.start_output = own_HA if start.output_HA is None else start.output_HA.to(own_HA)
        self.down_change = nn.Parameter(torch.zeros(own_HA.shape[0], widest, device=own_HA.device))
        self.output_change = nn.Parameter(torch.zeros_like(own_HA), trains_output)
        self.dtype = dtype

    @property
    def layer(self) -> DecoderLayer:
        return self._layer[0]

    def down(self, width: str) -> Tensor:
        """The width's own `down_proj`. Shapes: returns [H, K], fp32."""
        start = self.start[width]
        return start + self.down_change[:, : start.shape[1]]

    def output(self) -> Tensor:
        """The widths' own `o_proj`. Shapes: returns [H, A], fp32."""
        return self.start_output + self.output_change

    def own_output(self) -> Tensor:
        """The model's `o_proj`. Shapes: returns [H, A], fp32."""
        return self.layer.get_parameter("self_attn__o_proj__weight").detach().float()

    def forward(self, hidden_BTH: Tensor, width: str) -> Tensor:
        """Shapes: [B, T, H] in and out."""
        mixed_BTA = self.layer.mixed(hidden_BTH)
        hidden_BTH = hidden_BTH + linear(mixed_BTA, self.output().to(self.dtype), self.layer.bias("self_attn.o_proj"))
        normed_BTH = self.layer.feed_forward_norm(hidden_BTH)
        down_HK = self.down(width).to(self.dtype)
        kept = down_HK.shape[1]
        gate_BTK = linear(normed_BTH, self.gate_IH[:kept], self._kept_bias("mlp.gate_proj", kept))
        up_BTK = linear(normed_BTH, self.up_IH[:kept], self._kept_bias("mlp.up_proj", kept))
        return hidden_BTH + linear(silu(gate_BTK) * up_BTK, down_HK, self.layer.bias("mlp.down_proj"))

    def _kept_bias(self, name: str, kept: int) -> Tensor | None:
        bias_I = self.layer.bias(name)
        return None if bias_I is None else bias_I[self.order_I[:kept]]


class NarrowModel(nn.Module):
    """All layers of a model at several widths, between its own embedding and final norm."""

    def __init__(self, trunk: Trunk, starts: Sequence[LayerStart], *, trains_output: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.layers = nn.ModuleList(
            NarrowLayer(trunk.layer(index), start, trains_output) for index, start in enumerate(starts)
        )

    def forward(self, ids_BT: Tensor, width: str) -> Tensor:
        """The normed final states. Shapes: [B, T] to [B, T, H]."""
        hidden_BTH = self.trunk.embed(ids_BT)
        for layer in self.narrow_layers():
            hidden_BTH = layer(hidden_BTH, width)
        return self.trunk.norm(hidden_BTH)

    def narrow_layers(self) -> Iterator[NarrowLayer]:
        for layer in self.layers:
            assert isinstance(layer, NarrowLayer)
            yield layer

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
