"""Quantisation-aware training: decoder layers that compute, while they train, with the numbers their graph will hold.

Forward, every value is rounded exactly as `quantise` and `linear` in `models/graphs/` round it; backward, rounding is
taken for the identity (straight-through) and scales for constants. Only decoder layers are rounded here, no exit norm
and no head. Shapes: B sequences, T positions, H hidden.

Source: straight-through estimator, Bengio et al. (arXiv 1308.3432); rotated basis, QuaRot (arXiv 2404.00456).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, rms_norm

from models.distill.network.decoder import DecoderLayer, parameter_name
from models.errors import ConfigError
from models.graphs.precisions import REMOVED
from models.graphs.quantise import INT8_LIMIT
from models.graphs.rotate import hadamard, hadamard_size, rotation

BLOCK_SIZE = 32
SMALLEST_SPREAD = torch.finfo(torch.float32).tiny
SMALLEST_ROW = 1e-20

_NORM_BEFORE = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    "self_attn.v_proj": "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.up_proj": "post_attention_layernorm",
}
_WRITES_RESIDUAL = ("self_attn.o_proj", "mlp.down_proj")
_MIXED = "mlp.down_proj"


def fake_int8_columns(weight: Tensor) -> Tensor:
    """Weights on the grid of `quantise_columns`. Shapes: [out, in] in and out."""
    return _symmetric_int8(weight.float())


def fake_int8_blocks(weight: Tensor, block_size: int = BLOCK_SIZE) -> Tensor:
    """Weights on the grid of `quantise_blocks_int8`, or activations on that of `MatMulNBits` at accuracy level 4.

    Shapes: [..., in] in and out.
    """
    return _unblocked(_symmetric_int8(_blocks(weight.float(), block_size)), weight)


def fake_int8_rows(values: Tensor) -> Tensor:
    """Activations on the grid of `RowInt8Linear`: 1/127 steps of each row's largest magnitude. Shapes: [..., width]."""
    values = values.float()
    with torch.no_grad():
        largest = values.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_ROW)
        step = _divided(torch.ones_like(largest), INT8_LIMIT)
        grid = (values / largest / step).round() * step * largest
    return _straight_through(values, grid)


class BlockQuantisedLayer(DecoderLayer):
    """A layer whose weights and activations are rounded to int8 in blocks: the precision int8.

    Shares its parameters with `layer`, which stays as it is: train this one, export either.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__(layer.architecture, layer._rope, {})
        _share_parameters(layer, self)

    def _project(self, values: Tensor, name: str) -> Tensor:
        weight = fake_int8_blocks(self._parameter(f"{name}.weight")).to(values.dtype)
        bias = self._parameters.get(parameter_name(f"{name}.bias"))
        # ONNX Runtime's kernel does this by itself, without a node in the graph; it loses as much as int8 weights do.
        rounded = fake_int8_blocks(values).to(values.dtype)
        return linear(rounded, weight, None if bias is None else bias.to(values.dtype))


class RotatedInt8Layer(DecoderLayer):
    """A layer computed as w8a8 graphs do: in the rotated basis, weights int8 per column, activations int8 per row.

    Its input and output are in the ordinary basis. Shares its parameters with `layer`, which stays as it is.
    """

    _rotation: Tensor
    _hadamard: Tensor

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__(layer.architecture, layer._rope, {})
        _share_parameters(layer, self)
        parts = hadamard_size(layer.architecture.intermediate_size)
        device = next(layer.parameters()).device
        turn = torch.from_numpy(rotation(layer.architecture.hidden_size)).to(device)
        # Not persistent: checkpoints of this layer and of the plain one stay interchangeable.
        self.register_buffer("_rotation", turn, persistent=False)
        self.register_buffer("_hadamard", torch.from_numpy(hadamard(parts)).to(device), persistent=False)

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Shapes: [B, T, H] in and out."""
        turn = self._rotation.to(hidden_BTH.dtype)
        return super().forward(hidden_BTH @ turn) @ turn.T

    def attention_maps(self, hidden_BTH: Tensor) -> Tensor:
        """Shapes: returns [B, N, T, T]."""
        return super().attention_maps(hidden_BTH @ self._rotation.to(hidden_BTH.dtype))

    def rotated(self, name: str) -> Tensor:
        """One of the layer's tensors as `RotatedSource` reads it, but differentiable. Shapes: as the plain one."""
        values = self._parameter(name).float()
        matrix, _, kind = name.rpartition(".")
        if matrix in _NORM_BEFORE.values():
            return torch.ones_like(values)
        if matrix in _NORM_BEFORE and kind == "weight":
            values = (values * self._parameter(f"{_NORM_BEFORE[matrix]}.weight")) @ self._rotation
        if matrix in _WRITES_RESIDUAL:
            values = self._rotation.T @ values
        return self._mixed(values) if name == f"{_MIXED}.weight" else values

    def _norm(self, values: Tensor, name: str) -> Tensor:
        weight = self.rotated(f"{name}.weight").to(values.dtype)
        return rms_norm(values, values.shape[-1:], weight, self.architecture.norm_eps)

    def _project(self, values: Tensor, name: str) -> Tensor:
        if name == _MIXED:
            values = self._mixed(values)
        weight = fake_int8_columns(self.rotated(f"{name}.weight")).to(values.dtype)
        has_bias = parameter_name(f"{name}.bias") in self._parameters
        bias = self.rotated(f"{name}.bias").to(values.dtype) if has_bias else None
        return linear(fake_int8_rows(values).to(values.dtype), weight, bias)

    def _mixed(self, values: Tensor) -> Tensor:
        """The Hadamard transform over equal parts of the last dimension, which is its own inverse."""
        parts = values.reshape(*values.shape[:-1], len(self._hadamard), -1)
        return torch.matmul(self._hadamard.to(values.dtype), parts).flatten(-2)


_WRAPPERS: dict[str, Callable[[DecoderLayer], DecoderLayer]] = {
    "int8": BlockQuantisedLayer,
    "w8a8": RotatedInt8Layer,
    "w8a8-native": RotatedInt8Layer,
}
QUANTISED_PRECISIONS = tuple(_WRAPPERS)


@dataclass(slots=True, kw_only=True, frozen=True)
class QuantisedSettings:
    """Quantisation-aware training over the last `share` of the run, for one precision."""

    precision: str = "w8a8"
    share: float = 0.1

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        known = sorted(QUANTISED_PRECISIONS)
        found = (
            []
            if self.precision in known
            else [f"quantised.precision: {self.precision!r} is none of {', '.join(known)}{_why_not(self.precision)}"]
        )
        if not 0 < self.share <= 1:
            found.append(f"quantised.share must be above 0 and at most 1, not {self.share}")
        return found


def _why_not(precision: str) -> str:
    return f"; {precision} was removed: {REMOVED[precision]}" if precision in REMOVED else ""


def quantised(layer: DecoderLayer, precision: str) -> DecoderLayer:
    """A view of the layer that computes as graphs of that precision do and trains the very same parameters.

    There is nothing to undo: the plain layer, with its unrounded weights, remains.
    Raises: ConfigError for a precision that rounds nothing, or an unknown one.
    """
    if precision not in _WRAPPERS:
        known = ", ".join(QUANTISED_PRECISIONS)
        raise ConfigError(f"cannot train for precision {precision!r}; quantisation-aware training supports {known}")
    return _WRAPPERS[precision](layer)


def _share_parameters(layer: DecoderLayer, view: DecoderLayer) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        view.register_parameter(name, parameter)


def _symmetric_int8(values: Tensor) -> Tensor:
    """One scale along the last dimension, from its largest value: nothing is clipped, so all gradients pass."""
    with torch.no_grad():
        largest = values.abs().amax(dim=-1, keepdim=True)
        scale = _divided(largest.clamp(min=SMALLEST_SPREAD), INT8_LIMIT)
        grid = (values / scale).round().clamp(-INT8_LIMIT, INT8_LIMIT) * scale
    return _straight_through(values, grid)


def _straight_through(values: Tensor, grid: Tensor) -> Tensor:
    """`grid`, to the bit, with the gradient of `values`."""
    # `values + (grid - values)`, the usual form, would be off by a rounding error; this adds an exact zero.
    return grid + (values - values.detach())


def _divided(values: Tensor, divisor: int) -> Tensor:
    # By a tensor: dividing by a number becomes, on an accelerator, multiplying by its rounded reciprocal.
    return values / torch.full_like(values, divisor)


def _blocks(weight: Tensor, block_size: int) -> Tensor:
    """Shapes: [..., in] to [..., blocks, block_size], the last block padded with zeros."""
    padded: Tensor = pad(weight, (0, -weight.shape[-1] % block_size))
    return padded.reshape(*weight.shape[:-1], -1, block_size)


def _unblocked(blocks: Tensor, weight: Tensor) -> Tensor:
    return blocks.flatten(-2)[..., : weight.shape[-1]]
