"""Reads a GGUF file as a `ModelSource`: Llama, Mistral (which GGUF calls llama), Qwen2 and Qwen3.

Undoes what llama.cpp's converter does to the weights: names, and for llama the order of query and key rows.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from models.architecture import Architecture, Family, RopeScaling
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.rope import frequency_divisors
from models.row_slices import row_slices
from models.sampling import RecommendedSampling, usable_sampling
from models.sources.gguf_blocks import FLOAT_KINDS, Blocks, Bytes, is_exact, read_blocks, read_floats, round_to_eight
from models.sources.gguf_header import GgufHeader, TensorEntry, read_header
from models.sources.gguf_tokenizer import build_tokenizer
from models.tokenizer import Tokenizer

FAMILIES: dict[str, Family] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

ROPE_TENSOR = "rope_freqs.weight"

_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Source: gguf-py `constants.Keys.General`; llama.cpp's converter copies them from `generation_config.json`."""

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_REFUSED_KEYS = {
    "expert_count": "mixture of experts",
    "attention.scale": "its own attention scale",
    "logit_scale": "scaled logits",
    "residual_scale": "scaled residuals",
    "embedding_scale": "scaled embeddings",
    "attn_logit_softcapping": "soft-capped attention",
    "final_logit_softcapping": "soft-capped logits",
}


class GgufSource:
    """One GGUF file. The weights stay on disk; `read` dequantises one tensor."""

    def __init__(self, file: Path) -> None:
        """Raises: ConfigError for an unsupported model, WeightsError for a damaged file."""
        self._header = read_header(file)
        self.architecture = read_architecture(self._header)
        self.name = _model_name(self._header)
        self.licence = self._header.find("general.license", str) or "unknown"
        self.sampling = _sampling(self._header)
        self.files = (file,)
        entries = {key: entry for key, entry in self._header.tensors.items() if key != ROPE_TENSOR}
        self._entries = {hugging_face_name(key): entry for key, entry in entries.items()}
        _check_kinds(self._header)

    def sha256(self) -> str:
        return sha256_of(self.files)

    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor, dequantised. Shapes: matrices are [out, in]."""
        entry = self._entry(name)
        values = np.empty(entry.shape, np.float32)
        rows = values.reshape(-1, entry.shape[-1])
        size = entry.num_bytes // len(rows)
        for part in row_slices(*rows.shape):
            count = part.stop - part.start
            stored = stored_bytes(self.files[0], entry, part.start * size, count * size).reshape(count, size)
            rows[part] = _floats(stored, entry.kind)
        return self._in_rotary_order(name, values)

    def matrix(self, name: str) -> "StoredMatrix":
        entry = self._entry(name)
        places = np.arange(entry.shape[0], dtype=np.float32)
        order = self._in_rotary_order(name, places)
        return StoredMatrix(self.files[0], entry, None if order is places else order.astype(np.int64))

    def tokenizer(self) -> Tokenizer:
        tokenizer = build_tokenizer(self._header)
        tokenizer.check_fits(self.architecture.vocab_size, self.files[0])
        return tokenizer

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise WeightsError(f"{self.files[0]} has no tensor {name}") from None

    def _in_rotary_order(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.architecture.family != "llama":
            return values
        if ".self_attn.q_proj." in name:
            return unpermute_rows(values, self.architecture.num_heads)
        if ".self_attn.k_proj." in name:
            return unpermute_rows(values, self.architecture.num_kv_heads)
        return values


class StoredMatrix:
    """A matrix of a GGUF file in its own blocks; of a kind that is not read so, in blocks of eight bits."""

    def __init__(self, file: Path, entry: TensorEntry, order: npt.NDArray[np.int64] | None) -> None:
        """Shapes: `order` [rows] has the place of each row in the file; None where it is its own."""
        self._file = file
        self._entry = entry
        self._order = order
        self._row_bytes = entry.num_bytes // entry.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self._entry.shape[0], self._entry.shape[1]

    @property
    def kind(self) -> int:
        return self._entry.kind

    @property
    def kind_name(self) -> str:
        return self._entry.kind.name

    @property
    def is_exact(self) -> bool:
        return is_exact(self._entry.kind)

    def read(self, first: int, end: int) -> Blocks:
        rows = self.stored(first, end)
        if self.is_exact:
            return read_blocks(rows, self._entry.kind)
        return round_to_eight(_floats(rows, self._entry.kind))

    def stored(self, first: int, end: int) -> Bytes:
        """Rows as the file has them. Shapes: returns [rows, bytes of a row]."""
        if self._order is None:
            size = self._row_bytes
            return stored_bytes(self._file, self._entry, first * size, (end - first) * size).reshape(-1, size)
        return self._all.reshape(-1, self._row_bytes)[self._order[first:end]]

    @cached_property
    def _all(self) -> Bytes:
        return stored_bytes(self._file, self._entry, 0, self._entry.num_bytes)


def _floats(rows: Bytes, kind: int) -> npt.NDArray[np.float32]:
    """Shapes: rows [rows, bytes of a row], returns [rows, values]."""
    if kind in FLOAT_KINDS or is_exact(kind):
        return read_floats(rows, kind)
    return np.asarray(dequantize(rows, GGMLQuantizationType(kind)), np.float32).reshape(len(rows), -1)


def _check_kinds(header: GgufHeader) -> None:
    """Raises: ConfigError that names kinds of tensors which nothing here can read."""
    kinds = {entry.kind for entry in header.tensors.values()}
    if unreadable := sorted(kind.name for kind in kinds if not _can_dequantise(kind)):
        names = [name for name, entry in header.tensors.items() if entry.kind.name in unreadable]
        raise ConfigError(
            f"{header.file}: tensors stored as {', '.join(unreadable)} cannot be read ({len(names)} of them, such as "
            f"{names[0]}); take the model in another kind, such as Q4_K_M"
        )


def _can_dequantise(kind: GGMLQuantizationType) -> bool:
    if is_exact(kind):
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def stored_bytes(file: Path, entry: TensorEntry, start: int, count: int) -> Bytes:
    """Bytes of one tensor, read rather than mapped: a file that is cut short meanwhile would end the process.

    Shapes: returns [count].
    Raises: WeightsError for a file that was cut short since its header was read.
    """
    found = np.fromfile(file, np.uint8, count, offset=entry.offset + start)
    if len(found) != count:
        raise WeightsError(f"{file} was cut short while it was read; fetch it again")
    return found


def unpermute_rows(values: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Put the rows of each head back from interleaved pairs (0, d/2, 1, d/2 + 1, ...) to halves (0, 1, ...).

    Shapes: [num_heads * d, in] in and out, or [num_heads * d] for a bias.
    Source: llama.cpp, `LlamaModel.permute` in convert_hf_to_gguf.py, inverted.
    """
    pairs = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def hugging_face_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name that has none stays, for `check_complete` to report."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, ("weight" | "bias") as kind] if part in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    return name


def read_architecture(header: GgufHeader) -> Architecture:
    """The architecture a GGUF header describes.

    Raises: ConfigError that names what is not supported, WeightsError for missing or contradictory metadata.
    """
    prefix = _check_supported(header)
    hidden_size = header.require(f"{prefix}.embedding_length", int)
    num_heads = header.require(f"{prefix}.attention.head_count", int)
    num_kv_heads = header.find(f"{prefix}.attention.head_count_kv", int) or num_heads
    head_dim = header.find(f"{prefix}.attention.key_length", int) or hidden_size // max(num_heads, 1)
    theta = header.find(f"{prefix}.rope.freq_base", float) or 10_000.0
    _check_heads(header, prefix, head_dim, num_heads, num_kv_heads)
    return Architecture(
        family=FAMILIES[prefix],
        num_layers=header.require(f"{prefix}.block_count", int),
        hidden_size=hidden_size,
        intermediate_size=header.require(f"{prefix}.feed_forward_length", int),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=_vocab_size(header),
        max_context_tokens=header.require(f"{prefix}.context_length", int),
        norm_eps=_plain_decimal(header.require(f"{prefix}.attention.layer_norm_rms_epsilon", float)),
        rope_theta=theta,
        rope_scaling=_rope_scaling(header, prefix, head_dim, theta),
        has_qkv_bias=prefix == "qwen2" or "blk.0.attn_q.bias" in header.tensors,
        has_output_bias="blk.0.attn_output.bias" in header.tensors,
        has_qk_norm=prefix == "qwen3",
        has_tied_head="output.weight" not in header.tensors,
        sliding_window=_sliding_window(header, prefix),
    )


def _check_supported(header: GgufHeader) -> str:
    """The architecture's name, which prefixes its metadata keys."""
    num_parts = header.find("split.count", int) or 1
    if num_parts > 1:  # first: all but the first part have little else
        part = 1 + (header.find("split.no", int) or 0)
        raise ConfigError(
            f"{header.file} is part {part} of {num_parts} of a split model: join them with `llama-gguf-split --merge "
            "FIRST_PART NEW_FILE`, and give the new file"
        )
    prefix = header.require("general.architecture", str)
    if prefix not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise ConfigError(f"{header.file}: models of the {prefix!r} family are not supported, only {supported}")
    for key, feature in _REFUSED_KEYS.items():
        if header.metadata.get(f"{prefix}.{key}"):
            raise ConfigError(f"{header.file}: {feature} ({prefix}.{key}) is not supported")
    return prefix


def _check_heads(header: GgufHeader, prefix: str, head_dim: int, num_heads: int, num_kv_heads: int) -> None:
    rotated = header.find(f"{prefix}.rope.dimension_count", int) or head_dim
    value_length = header.find(f"{prefix}.attention.value_length", int) or head_dim
    if rotated != head_dim:
        raise ConfigError(f"{header.file}: partial rotary positions ({rotated} of {head_dim}) are not supported")
    if value_length != head_dim:
        raise ConfigError(
            f"{header.file}: values of another size than keys ({value_length}, {head_dim}) are not supported"
        )
    if head_dim < 2 or head_dim % 2 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise WeightsError(
            f"{header.file}: {num_heads} heads, {num_kv_heads} key heads and head size {head_dim} do not fit"
        )


def _vocab_size(header: GgufHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise WeightsError(f"{header.file} has no tensor token_embd.weight")
    return embedding.shape[0]


def _sliding_window(header: GgufHeader, prefix: str) -> int | None:
    window = header.find(f"{prefix}.attention.sliding_window", int)
    if not window or window >= header.require(f"{prefix}.context_length", int):
        return None
    if prefix != "llama":
        raise ConfigError(f"{header.file}: sliding-window attention in a {prefix} model is not supported")
    return window


def _plain_decimal(value: float) -> float:
    """The short decimal that was rounded to fp32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(header: GgufHeader, prefix: str, head_dim: int, theta: float) -> RopeScaling:
    kind = header.find(f"{prefix}.rope.scaling.type", str) or "none"
    if kind not in ("none", "linear"):
        raise ConfigError(f"{header.file}: rope scaling {kind!r} is not supported, only linear and llama3 are")
    if ROPE_TENSOR in header.tensors:
        return _llama3_scaling(header, head_dim, theta)
    if kind == "linear":
        return RopeScaling(kind="linear", factor=header.require(f"{prefix}.rope.scaling.factor", float))
    legacy_factor = header.find(f"{prefix}.rope.scale_linear", float)
    return RopeScaling(kind="linear", factor=legacy_factor) if legacy_factor else RopeScaling()


def _llama3_scaling(header: GgufHeader, head_dim: int, theta: float) -> RopeScaling:
    """The llama3 settings behind a table of frequency divisors, which is all that a GGUF keeps of them."""
    entry = header.tensors[ROPE_TENSOR]
    if entry.kind is not GGMLQuantizationType.F32 or entry.shape != (head_dim // 2,):
        raise WeightsError(
            f"{header.file}: {ROPE_TENSOR} is {entry.kind.name} {entry.shape}, not F32 ({head_dim // 2},)"
        )
    divisors = np.fromfile(header.file, dtype="<f4", count=head_dim // 2, offset=entry.offset)
    scaling = RopeScaling(kind="llama3", factor=_plain_decimal(float(divisors.max())))
    if not np.allclose(divisors, frequency_divisors(head_dim, theta, scaling), rtol=1e-4):
        raise ConfigError(f"{header.file}: its rope frequency table ({ROPE_TENSOR}) is not the one of Llama 3.1")
    return scaling


def _sampling(header: GgufHeader) -> RecommendedSampling | None:
    found = {key: header.metadata.get(key) for key in _SAMPLING_KEYS.values()}
    values = {key: _plain_decimal(one) if type(one) is float else one for key, one in found.items()}
    return usable_sampling(values, _SAMPLING_KEYS, header.file)


def _model_name(header: GgufHeader) -> str:
    """Base name and size where the file states them ("smollm2-135m"), else the file's own name."""
    base, size = header.find("general.basename", str), header.find("general.size_label", str)
    return f"{base}-{size}".lower().replace(" ", "-") if base and size else header.file.stem
