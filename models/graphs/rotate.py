"""The same model in another basis, in which no channel is an outlier.

int8 activations with one scale per row lose most of their precision to the few large channels that decoders grow.
An orthogonal change of basis spreads those over all channels and changes nothing but rounding. In the residual stream
it costs nothing at run time: RMS norms do not see it once their weights are folded into the matrices behind them. The
input of `down_proj` passes through a nonlinearity, so the graph itself has to turn it: by a fast Hadamard transform.

Example: x = [100, 1, 1, 1] needs int8 steps of 100 / 127 = 0.79. Times the 4 x 4 Hadamard matrix H (entries +-0.5) it
is [51.5, 49.5, 49.5, 49.5] and needs steps of 51.5 / 127 = 0.41: half the rounding error, and less by up to the square
root of n with n channels. A matrix W that reads x becomes W @ H, and (x @ H) @ (W @ H).T = x @ W.T.

Source: QuaRot (arXiv 2404.00456, section 4).
"""

import re

import msgspec
import numpy as np
import numpy.typing as npt

from models.row_slices import row_slices
from models.sources.derived_source import DerivedSource
from models.sources.source import ModelSource

Array = npt.NDArray[np.float32]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
MAX_PARTS = 64
MIN_PART = 16
MIXED_ROWS = 16
"""Of a matrix whose input is mixed, at a time: with 8,192 inputs half a megabyte, which a core's cache holds."""
FINAL_NORM = "model.norm.weight"
HEAD_PROJECT = "cheap_head.project.weight"
"""What the cheap head previews logits from; it reads the normed state, as the head does."""
MAP_WEIGHT = "map.weight"
MAP_BIAS = "map.bias"
"""An exit's linear map of the residual stream, which it reads as it is, without a norm."""

_NORM_BEFORE = {
    "self_attn.q_proj.weight": "input_layernorm.weight",
    "self_attn.k_proj.weight": "input_layernorm.weight",
    "self_attn.v_proj.weight": "input_layernorm.weight",
    "mlp.gate_proj.weight": "post_attention_layernorm.weight",
    "mlp.up_proj.weight": "post_attention_layernorm.weight",
}
_WRITES_RESIDUAL = re.compile(r"(self_attn|mlp)\.(widths\.\d+\.)?(o_proj|down_proj)\.(weight|bias)")
_READS_PRODUCT = re.compile(r"mlp\.(widths\.\d+\.)?down_proj\.weight")
"""With the matrices that belong to a width alone (`models/graphs/widths.py`)."""
_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")


def rotation(size: int) -> Array:
    """An orthogonal matrix whose entries are all small: a discrete cosine transform after fixed random signs.

    Shapes: [size, size]. The same on every machine.
    """
    position, frequency = np.arange(size)[:, None], np.arange(size)[None]
    cosines = np.cos(np.pi * (2 * position + 1) * frequency / (2 * size)) * np.sqrt(2 / size)
    cosines[:, 0] /= np.sqrt(2)
    signs = np.random.Generator(np.random.PCG64(size)).choice([-1.0, 1.0], size)
    matrix: Array = (signs[:, None] * cosines).astype(np.float32)
    return matrix


def hadamard_size(width: int) -> int:
    """How many parts of the input of `down_proj` the graph mixes: a power of two that divides `width`, 1 for none.

    Parts stay long enough to fill vector registers, and more than 64 of them gain little.
    """
    size = 1
    while size < MAX_PARTS and width % (2 * size) == 0 and width // (2 * size) >= MIN_PART:
        size *= 2
    return size


def hadamard(size: int) -> Array:
    """The orthogonal Hadamard matrix of a power of two. Shapes: [size, size]."""
    signs = np.ones((1, 1), np.float32)
    while len(signs) < size:
        signs = np.block([[signs, signs], [signs, -signs]])
    return np.asarray(signs / np.sqrt(size), np.float32)


class RotatedSource(DerivedSource):
    """A `ModelSource` that reads another one's weights in the rotated basis. Its head is never tied.

    Its `down_proj` expects the product of gate and up cut into `hadamard_size` equal parts and mixed by `hadamard`;
    that of a width expects its own neurons so, in as many parts as `hadamard_size` of their number.
    """

    def __init__(self, source: ModelSource) -> None:
        super().__init__(source, msgspec.structs.replace(source.architecture, has_tied_head=False))
        self._rotation = rotation(source.architecture.hidden_size)

    def tensor_names(self) -> frozenset[str]:
        return self._base.tensor_names() | {HEAD}

    def shape(self, name: str) -> tuple[int, ...]:
        tied = name == HEAD and self._base.architecture.has_tied_head
        return self._base.shape(EMBEDDING if tied else name)

    def read(self, name: str) -> Array:
        """Shapes: as the other source has them; norms over the residual stream become ones."""
        if name == HEAD:
            tied = self._base.architecture.has_tied_head
            weight = self._base.read(EMBEDDING if tied else HEAD)
            return self._read_residual(weight, self._base.read(FINAL_NORM))
        values = self._base.read(name)
        found = _LAYER.fullmatch(name)
        return self._other_tensor(values, name) if found is None else self._layer_tensor(values, found[1], found[2])

    def _other_tensor(self, values: Array, name: str) -> Array:
        if name == HEAD_PROJECT:
            values = self._read_residual(values, self._base.read(FINAL_NORM))
        elif name == FINAL_NORM:
            values = np.ones_like(values)
        elif name == MAP_WEIGHT:
            values = np.asarray(self._rotation.T @ values @ self._rotation, np.float32)
        elif name == MAP_BIAS:
            values = values @ self._rotation
        elif name == EMBEDDING:
            values = self._turned(values)
        return np.asarray(values, np.float32)

    def _layer_tensor(self, values: Array, prefix: str, part: str) -> Array:
        if part in _NORM_BEFORE.values():
            return np.ones_like(values)
        if part in _NORM_BEFORE:
            return self._read_residual(values, self._base.read(prefix + _NORM_BEFORE[part]))
        if _WRITES_RESIDUAL.fullmatch(part):
            values = self._rotation.T @ values
        return _mixed_inputs(values) if _READS_PRODUCT.fullmatch(part) else values

    def _read_residual(self, weight: Array, gamma: Array) -> Array:
        """A matrix that reads the normalised residual stream, with the norm's weight folded in."""
        return self._turned(weight, gamma)

    def _turned(self, rows: Array, gamma: Array | None = None) -> Array:
        """Every row in the other basis. A large matrix in place, some rows at a time: it is a copy of our own."""
        parts = list(row_slices(*rows.shape))
        if len(parts) == 1:
            return np.asarray((rows if gamma is None else rows * gamma) @ self._rotation, np.float32)
        for part in parts:
            rows[part] = (rows[part] if gamma is None else rows[part] * gamma) @ self._rotation
        return rows


def _mixed_inputs(weight: Array) -> Array:
    """A matrix whose input is mixed by `hadamard`, which is its own inverse: by additions and subtractions of
    ever larger parts (the fast Walsh-Hadamard transform), without the matrix."""
    size = hadamard_size(weight.shape[1])
    mixed = np.multiply(weight, np.float32(size**-0.5), order="C")
    for first in range(0, len(mixed), MIXED_ROWS):
        rows = mixed[first : first + MIXED_ROWS]
        stride = weight.shape[1] // size
        while stride < weight.shape[1]:
            pairs = rows.reshape(len(rows), -1, 2, stride)
            even, odd = pairs[:, :, 0], pairs[:, :, 1]
            total = even + odd
            np.subtract(even, odd, out=odd)
            even[:] = total
            stride *= 2
    return mixed
