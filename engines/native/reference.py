"""What the native operators compute, in numpy and in the plainest way: the truth that the C code is tested against.

Letters in shapes are those of the package's docstring: B rows, S tokens, H, F widths, D head dimension, N positions of
a slot, P rotary positions, NH query heads, KVH key-value heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Rounding = Callable[[npt.NDArray[np.floating]], Floats]
Cache = TypeVar("Cache", Halves, Floats)


def dequantize(q: npt.NDArray[np.uint8], row_scale: Floats) -> Floats:
    """Rows as floats again. Shapes: q [B, S, H], row_scale [B, S, 1], returns [B, S, H]."""
    values: Floats = (q.astype(np.float32) - 128) * row_scale
    return values


def rms_norm(x: Floats, gamma: Floats, epsilon: float) -> Floats:
    """Every row over its root mean square. Shapes: x [..., H], gamma [H], returns [..., H]."""
    normed: Floats = x / np.sqrt((x**2).mean(-1, keepdims=True) + np.float32(epsilon)) * gamma
    return normed


def mixed(values: Floats, parts: int) -> Floats:
    """The orthogonal Hadamard transform over equal parts of the last dimension.

    Element r of every part is replaced by a mix of element r of all parts: two parts [a, b] become
    [(a + b) / sqrt(2), (a - b) / sqrt(2)].

    Shapes: values and result [..., F]; `parts` is a power of two that divides F.
    """
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < parts:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32) / np.sqrt(np.float32(2)), matrix)
    split = values.reshape(*values.shape[:-1], parts, -1)
    return np.asarray(np.einsum("pq,...qr->...pr", matrix, split).reshape(values.shape), np.float32)


def swiglu(gate_up: Floats) -> Floats:
    """`silu(gate) * up`. Shapes: gate_up [B, S, 2 * F], the gate first; returns [B, S, F]."""
    gate, up = np.split(gate_up, 2, -1)
    hidden: Floats = gate / (1 + np.exp(-gate)) * up
    return hidden


@dataclass(slots=True, kw_only=True)
class WidthRows:
    """Rows of several widths, widest first, through a feed-forward layer: gate and up in blocks of neurons, narrowest
    first, then a matrix of each width.

    Shapes: q [B, S, K], row_scale [B, S, 1], rows and neurons [W], per block gate_up [K, 2 * n] and its scales [2 * n],
    narrowest first, per width down [neurons, N] and its scales [N], widest first.
    """

    q: npt.NDArray[np.uint8]
    row_scale: Floats
    rows: npt.NDArray[np.int32]
    neurons: npt.NDArray[np.int32]
    gate_up: list[npt.NDArray[np.int8]]
    gate_up_scales: list[Floats]
    down: list[npt.NDArray[np.int8]]
    down_scales: list[Floats]

    @classmethod
    def random(
        cls,
        *,
        rows: tuple[int, ...],
        neurons: tuple[int, ...] = (200, 128, 64),
        num_tokens: int = 1,
        depth: int = 96,
        num_outputs: int = 50,
        seed: int = 0,
    ) -> Self:
        rng = np.random.default_rng(seed)
        blocks = [int(size) for size in np.diff((0, *reversed(neurons)))]

        def weights(num_inputs: int, width: int) -> npt.NDArray[np.int8]:
            return rng.integers(-127, 128, (num_inputs, width)).astype(np.int8)

        return cls(
            q=rng.integers(1, 256, (rows[-1], num_tokens, depth)).astype(np.uint8),
            row_scale=rng.random((rows[-1], num_tokens, 1), np.float32) * np.float32(0.01) + np.float32(0.001),
            rows=np.array(rows, np.int32),
            neurons=np.array(neurons, np.int32),
            gate_up=[weights(depth, 2 * size) for size in blocks],
            gate_up_scales=[rng.random(2 * size, np.float32) * np.float32(0.01) for size in blocks],
            down=[weights(size, num_outputs) for size in neurons],
            down_scales=[rng.random(num_outputs, np.float32) for _ in neurons],
        )

    @property
    def width_of_row(self) -> list[int]:
        """Shapes: returns [B], numbers of widths."""
        return [int(np.searchsorted(self.rows, row, side="right")) for row in range(len(self.q))]

    def nested_inputs(self) -> dict[str, np.ndarray | None]:
        """Of NestedProduct."""
        return {"q": self.q, "rows_by_width": self.rows, **_pairs(self.gate_up, self.gate_up_scales)}

    def swiglu_inputs(self, gate_up: Floats, parts: npt.NDArray[np.int32]) -> dict[str, np.ndarray | None]:
        """Of NestedSwigluQuantize. Shapes: gate_up [B, S, 2 * F], parts [W]."""
        return {
            "gate_up": gate_up,
            "row_scale": self.row_scale,
            "rows_by_width": self.rows,
            "neurons": self.neurons,
            "hadamard_parts": parts,
        }

    def width_inputs(self, q: npt.NDArray[np.uint8]) -> dict[str, np.ndarray | None]:
        """Of WidthProduct. Shapes: q [B, S, F]."""
        return {"q": q, "rows_by_width": self.rows, **_pairs(self.down, self.down_scales)}


def _pairs(weights: list[npt.NDArray[np.int8]], scales: list[Floats]) -> dict[str, np.ndarray | None]:
    pairs: dict[str, np.ndarray | None] = {}
    for i, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
        pairs |= {f"weight_{i}": weight, f"column_scale_{i}": scale}
    return pairs


def nested_product(case: WidthRows) -> Floats:
    """NaN where the operator leaves values undefined. Shapes: returns [B, S, 2 * F]."""
    product: Floats = np.concatenate(
        [exact_product(case.q, *block) for block in zip(case.gate_up, case.gate_up_scales, strict=True)], -1
    )
    for row, width in enumerate(case.width_of_row):
        product[row, :, 2 * case.neurons[width] :] = np.nan
    return product


def nested_swiglu(case: WidthRows, gate_up: Floats) -> list[Floats]:
    """Rows before mixing and quantisation, each of its own neurons.

    Shapes: gate_up [B, S, 2 * F], returns B times [S, neurons].
    """
    blocks = [0, *reversed(case.neurons.tolist())]
    rows = []
    for row, width in enumerate(case.width_of_row):
        scaled = gate_up[row, :, : 2 * case.neurons[width]] * case.row_scale[row]
        used = blocks[: len(blocks) - width]
        rows.append(np.concatenate([swiglu(scaled[:, 2 * a : 2 * b]) for a, b in pairwise(used)], -1))
    return rows


def width_product(case: WidthRows, q: npt.NDArray[np.uint8]) -> Floats:
    """Shapes: q [B, S, F], returns [B, S, N]."""
    rows = []
    for row, width in enumerate(case.width_of_row):
        down = case.down[width]
        rows.append(exact_product(q[row, :, : len(down)], down, case.down_scales[width]))
    return np.stack(rows)


def exact_product(q: npt.NDArray[np.uint8], weight: npt.NDArray[np.int8], scales: Floats) -> Floats:
    """Shapes: q [..., K], weight [K, N], scales [N], returns [..., N]."""
    sums = (q.astype(np.int64) - 128) @ weight.astype(np.int64)
    return np.asarray(sums.astype(np.float32) * scales, np.float32)


@dataclass(slots=True, kw_only=True)
class HeadRows:
    """The inputs of one CandidateLogits.

    Shapes: x [T, K], x_scale [T, 1], p [T, R], p_scale [T, 1], preview [R, V], preview_scale, bias [V], rows [V, K],
    rows_scale [V], frequent [F].
    """

    x: npt.NDArray[np.uint8]
    x_scale: Floats
    p: npt.NDArray[np.uint8]
    p_scale: Floats
    preview: npt.NDArray[np.int8]
    preview_scale: Floats
    bias: Floats
    rows: npt.NDArray[np.int8]
    rows_scale: Floats
    frequent: npt.NDArray[np.int32]
    num_candidates: int
    reach: float

    @classmethod
    def random(cls, *, num_rows: int, vocab: int = 333, depth: int = 100, rank: int = 8, reach: float = 5.0) -> Self:
        """Previews that spread over some nats; the same at every call."""
        rng = np.random.default_rng(num_rows)
        return cls(
            x=rng.integers(1, 256, (num_rows, depth)).astype(np.uint8),
            x_scale=rng.random((num_rows, 1), np.float32) * 0.01,
            p=rng.integers(1, 256, (num_rows, rank)).astype(np.uint8),
            p_scale=rng.random((num_rows, 1), np.float32) * 0.02,
            preview=rng.integers(-127, 128, (rank, vocab)).astype(np.int8),
            preview_scale=rng.random(vocab, np.float32) * 0.02,
            bias=rng.standard_normal(vocab, np.float32),
            rows=rng.integers(-127, 128, (vocab, depth)).astype(np.int8),
            rows_scale=rng.random(vocab, np.float32) * 0.02,
            frequent=rng.permutation(vocab)[:40].astype(np.int32),
            num_candidates=20,
            reach=reach,
        )

    def inputs(self) -> dict[str, np.ndarray | None]:
        names = ("x", "x_scale", "p", "p_scale", "preview", "preview_scale", "bias", "rows", "rows_scale", "frequent")
        return {name: getattr(self, name) for name in names}

    def attributes(self) -> dict[str, float]:
        return {"num_candidates": self.num_candidates, "reach": self.reach}


def exact_logits(case: HeadRows) -> Floats:
    """What the exact head gives. Shapes: returns [T, V]."""
    sums = (case.x.astype(np.int64) - 128) @ case.rows.T.astype(np.int64)
    logits: Floats = sums.astype(np.float32) * case.rows_scale * case.x_scale
    return logits


def preview_logits(case: HeadRows) -> Floats:
    """Shapes: returns [T, V]."""
    sums = (case.p.astype(np.int64) - 128) @ case.preview.astype(np.int64)
    logits: Floats = sums.astype(np.float32) * case.preview_scale * case.p_scale + case.bias
    return logits


def candidates_of(case: HeadRows, preview: Floats) -> npt.NDArray[np.bool_]:
    """Which tokens of one row are candidates: those from a least preview on, which is raised in halvings of the
    distance to the best until few enough are left; frequent tokens are none.

    Shapes: preview and result [V].
    """
    rivals = preview.copy()
    rivals[case.frequent] = -np.inf
    enough = preview.max()
    least = np.float32(enough - np.float32(case.reach))
    if (rivals >= least).sum() <= case.num_candidates:
        return np.asarray(rivals >= least)
    for _ in range(8):
        middle = np.float32(0.5) * (enough + least)
        if (rivals >= middle).sum() <= case.num_candidates:
            enough = middle
        else:
            least = middle
    return np.asarray(rivals >= enough)


def candidate_logits(case: HeadRows) -> Floats:
    """Exact for frequent tokens and candidates, the preview for the others. Shapes: returns [T, V]."""
    exact, logits = exact_logits(case), preview_logits(case)
    for row, preview in enumerate(logits.copy()):
        is_exact = candidates_of(case, preview)
        is_exact[case.frequent] = True
        logits[row, is_exact] = exact[row, is_exact]
    return logits


@dataclass(slots=True, kw_only=True)
class RowsOfKv:
    """The inputs of one SlotAttention: rows with their own past, caches with NaN where nothing is written,
    elsewhere with values that every instruction set writes.

    Shapes: qkv [B, S, (NH + 2 * KVH) * D], row_scale [B, S, 1], keys, values [B, KVH, N, D], cos, sin [P, D / 2],
    bias [(NH + 2 * KVH) * D], q_norm, k_norm [D]; `past` has B numbers of positions already written.
    """

    num_heads: int
    num_kv_heads: int
    window: int
    qkv: Floats
    row_scale: Floats
    keys: Halves
    values: Halves
    past: tuple[int, ...]
    cos: Floats
    sin: Floats
    bias: Floats | None = None
    q_norm: Floats | None = None
    k_norm: Floats | None = None

    @classmethod
    def random(
        cls,
        *,
        num_rows: int,
        num_tokens: int,
        past: tuple[int, ...],
        num_heads: int = 6,
        num_kv_heads: int = 2,
        head_dim: int = 64,
        num_positions: int = 256,
        window: int = -1,
        has_extras: bool = False,
        seed: int = 0,
    ) -> Self:
        rng = np.random.default_rng(seed)
        width = (num_heads + 2 * num_kv_heads) * head_dim
        cache = (2, num_rows, num_kv_heads, num_positions, head_dim)
        keys, values = to_bf16(rng.standard_normal(cache, np.float32)).astype(np.float16)
        angles = np.arange(num_positions)[:, None] / 1e4 ** (np.arange(0, head_dim, 2) / head_dim)
        for row, length in enumerate(past):
            values[row, :, length:] = np.float16("nan")
            keys[row, :, length:] = np.float16("nan")
        return cls(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            window=window,
            qkv=rng.standard_normal((num_rows, num_tokens, width), np.float32),
            row_scale=rng.random((num_rows, num_tokens, 1), np.float32) + np.float32(0.5),
            keys=keys,
            values=values,
            past=past,
            cos=np.cos(angles).astype(np.float32),
            sin=np.sin(angles).astype(np.float32),
            bias=rng.standard_normal(width, np.float32) if has_extras else None,
            q_norm=rng.random(head_dim, np.float32) + 1 if has_extras else None,
            k_norm=rng.random(head_dim, np.float32) + 1 if has_extras else None,
        )

    @property
    def head_dim(self) -> int:
        return int(self.keys.shape[3])

    @property
    def num_tokens(self) -> int:
        return int(self.qkv.shape[1])

    def inputs(self) -> dict[str, np.ndarray | None]:
        """In the operator's order, by its names. Shapes: as of the fields; seqlens_k [B]."""
        return {
            "qkv": self.qkv,
            "qkv_row_scale": self.row_scale,
            "past_k": self.keys,
            "past_v": self.values,
            "seqlens_k": np.array(self.past, np.int32) + np.int32(self.num_tokens - 1),
            "cos": self.cos,
            "sin": self.sin,
            "qkv_bias": self.bias,
            "q_norm": self.q_norm,
            "k_norm": self.k_norm,
        }

    def attributes(self) -> dict[str, float]:
        return {
            "num_heads": self.num_heads,
            "kv_num_heads": self.num_kv_heads,
            "scale": float(self.head_dim) ** -0.5,
            "local_window_size": self.window,
            "norm_epsilon": 1e-6,
        }


def rotate(case: RowsOfKv, x: Floats, norm: Floats | None, past: int) -> Floats:
    """Norm and rotary positions of new heads, the first at `past`. Shapes: x and result [S, heads, D], norm [D]."""
    if norm is not None:
        x = rms_norm(x, norm, 1e-6)
    half = case.head_dim // 2
    cos, sin = (table[past : past + x.shape[0], None] for table in (case.cos, case.sin))
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def to_bf16(x: npt.NDArray[np.floating]) -> Floats:
    """The nearest values that bf16 has, ties to even. Shapes: x and result [...]."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded: Floats = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)
    return rounded


def to_floats(x: npt.NDArray[np.floating]) -> Floats:
    return x.astype(np.float32)


def slot_attention(case: RowsOfKv, *, is_bf16: bool = False) -> tuple[Floats, Halves, Halves]:
    """Attended rows before quantisation, and both caches with the new positions. Inputs stay as they are. `is_bf16`
    rounds what is multiplied and what is written, all but the weights of keys.

    Shapes: returns [B, S, NH * D] and twice [B, KVH, N, D].
    """
    rounded = to_bf16 if is_bf16 else to_floats
    return attend(case, case.keys.copy(), case.values.copy(), rounded, rounded)


def attend(
    case: RowsOfKv, keys: Cache, values: Cache, rounded: Rounding, kept: Rounding
) -> tuple[Floats, Cache, Cache]:
    """Attend to these caches, which get the new positions, and return all three; `rounded` is what is multiplied with
    them, `kept` what is written. Shapes: as `slot_attention`.
    """
    rows = [_attend_row(case, row, keys[row], values[row], rounded, kept) for row in range(len(case.past))]
    return np.stack(rows), keys, values


def _attend_row(case: RowsOfKv, row: int, keys: Cache, values: Cache, rounded: Rounding, kept: Rounding) -> Floats:
    past, num_tokens, group = case.past[row], case.num_tokens, case.num_heads // case.num_kv_heads
    qkv = case.qkv[row] * case.row_scale[row]
    if case.bias is not None:
        qkv = qkv + case.bias
    heads = qkv.reshape(num_tokens, -1, case.head_dim)
    queries, new_keys, new_values = np.split(heads, [case.num_heads, case.num_heads + case.num_kv_heads], 1)
    queries = rotate(case, queries, case.q_norm, past)
    written = slice(past, past + num_tokens)
    keys[:, written] = kept(rotate(case, new_keys, case.k_norm, past)).swapaxes(0, 1)
    values[:, written] = kept(new_values).swapaxes(0, 1)
    queries = rounded(queries * np.float32(case.head_dim**-0.5 * np.log2(np.e)))
    attended = np.empty_like(queries)
    for token in range(num_tokens):
        last = past + token
        seen = slice(max(0, last + 1 - case.window) if case.window > 0 else 0, last + 1)
        for head in range(case.num_heads):
            logits = to_floats(keys[head // group, seen]) @ queries[token, head]
            weights = np.exp2(logits - logits.max())
            mixed = weights @ to_floats(values[head // group, seen])
            attended[token, head] = mixed / weights.sum()
    return attended.reshape(num_tokens, -1)
